"""Which host a TLS client asks for, read from its first message by OpenSSL itself, without ending the TLS."""

from __future__ import annotations

import ssl
from typing import Final

from stateroom.workspaces.egress.pipe import Pipe

HELLO_MAX: Final = 65536
_HANDSHAKE: Final = 0x16
"""First byte of whatever begins with a handshake of TLS."""


class NotTls(Exception):
    """What came is no beginning of TLS, or one that nobody could read."""


class Hello:
    """What a client's first message says."""

    def __init__(self, name: str | None, raw: bytes, refusal: bytes) -> None:
        self.name = name
        """None: it names no host."""
        self.raw = raw
        """As it came."""
        self.refusal = refusal
        """The alert that answers it: unrecognised name."""


def begins_tls(data: bytes) -> bool:
    return data[:1] == bytes((_HANDSHAKE,))


async def read_hello(pipe: Pipe) -> Hello:
    """Read until the message is whole. Raises NotTls, OSError."""
    names: list[str | None] = []

    def named(_: ssl.SSLObject | ssl.SSLSocket, name: str | None, __: ssl.SSLContext) -> int:
        names.append(name)
        return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = named
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    reading = context.wrap_bio(incoming, outgoing, server_side=True)
    raw = bytearray()
    while len(raw) < HELLO_MAX:
        data = await pipe.read()
        if not data:
            break
        raw += data
        incoming.write(data)
        try:
            reading.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError:
            if names:
                return Hello(names[0], bytes(raw), outgoing.read())
            break
    raise NotTls
