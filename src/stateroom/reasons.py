"""Why a connection could not be made or broke, in words: without numbers, addresses or names of exceptions.

Each reason is a clause about the other side, to stand after a colon: "it refused the connection".
"""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Final

_BY_NUMBER: Final = {
    errno.ECONNREFUSED: "it refused the connection (nothing listens there)",
    errno.EHOSTUNREACH: "its machine cannot be reached",
    errno.EHOSTDOWN: "its machine cannot be reached",
    errno.ENETUNREACH: "no network leads to its machine",
    errno.ENETDOWN: "the network is down",
    errno.ETIMEDOUT: "it did not answer in time",
    errno.ECONNRESET: "it closed the connection",
    errno.ECONNABORTED: "it closed the connection",
    errno.EPIPE: "it closed the connection",
    errno.EMFILE: "this process has too many open files",
    errno.ENFILE: "this machine has too many open files",
}
_BY_NAME: Final = {
    socket.EAI_NONAME: "no such host name is known",
    socket.EAI_AGAIN: "the name server does not answer",
    getattr(socket, "EAI_NODATA", socket.EAI_NONAME): "no such host name is known",
}
_BY_TLS: Final = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS there",
    "HTTP_REQUEST": "it does not speak TLS there",
    "UNEXPECTED_EOF_WHILE_READING": "it closed the connection",
}


def reason(error: BaseException) -> str:
    """Why, as far as that is known; else what the system says. The text is never empty."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLError):
        why = getattr(error, "reason", None) or "the handshake failed"
        return _BY_TLS.get(why) or why.replace("_", " ").lower()
    if isinstance(error, socket.gaierror):
        return _BY_NAME.get(error.errno or 0) or f"its name cannot be looked up ({error.strerror or error})"
    if isinstance(error, TimeoutError):
        return _BY_NUMBER[errno.ETIMEDOUT]
    if isinstance(error, OSError):
        return _BY_NUMBER.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__
    return str(error) or type(error).__name__
