"""Sealed text that clients carry for us: `encrypted_content` of reasoning items.

AES-256-GCM under a key that only this installation has (a file in the data directory, readable by its owner alone),
bound to the project. What does not open is treated as somebody else's and left alone.
"""

from __future__ import annotations

import base64
import hmac
import os
from pathlib import Path

PREFIX = "sr1."


class Sealer:
    """Seals and opens short texts."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, project: str, text: str) -> str:
        """An opaque string that :meth:`open` gives back for the same project."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # lazy: 10 ms that few runs need

        nonce = os.urandom(12)
        sealed = AESGCM(self._key).encrypt(nonce, text.encode(), project.encode())
        return PREFIX + base64.urlsafe_b64encode(nonce + sealed).decode()

    def open(self, project: str, sealed: str) -> str | None:
        """The text; None when it was not sealed here for this project, or was changed."""
        from cryptography.exceptions import InvalidTag  # lazy: 10 ms that few runs need
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # lazy: as above

        if not sealed.startswith(PREFIX):
            return None
        try:
            raw = base64.urlsafe_b64decode(sealed[len(PREFIX) :])
            return AESGCM(self._key).decrypt(raw[:12], raw[12:], project.encode()).decode()
        except (ValueError, InvalidTag):
            return None


def derived_key(key: bytes, purpose: str) -> bytes:
    """Another key of 32 bytes for another purpose: who has it knows nothing of the installation's own."""
    return hmac.digest(key, b"stateroom key for " + purpose.encode(), "sha256")


def load_key(path: Path) -> bytes:
    """The installation's key, made on first use. Written whole or not at all, mode 0600."""
    try:
        key = path.read_bytes()
        if len(key) == 32:
            return key
    except FileNotFoundError:
        pass
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    key = os.urandom(32)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return key
