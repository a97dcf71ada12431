"""The fingerprint of a program: what has to be the same for a replay to be one, sealed against change.

It says which engine ran the program, a hash of the code, the seed of its random numbers and the time that its clock
stands still at. Clients carry it and give it back; the authentication code, under a key of this installation and bound
to the project, keeps them from having anything else replayed. It hides nothing.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

import msgspec

from stateroom.errors import InvalidRequest

_PREFIX = "prog1."
_MAC_BYTES = 16


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """What a fingerprint says."""

    engine: str
    code: str
    """Hash of the code."""
    seed: str
    time_ms: int

    def call_id(self, position: int) -> str:
        """The id of the call at a position."""
        digest = hashlib.sha256(msgspec.json.encode((self.seed, self.code, position))).hexdigest()
        return f"call_{digest[:32]}"


class Fingerprints:
    """Makes and reads them. `key` is 32 secret bytes of this installation."""

    def __init__(self, key: bytes, engine: str) -> None:
        self._key = key
        self._engine = engine

    def make(self, code: str, *, project: str, seed: str, time: float) -> str:
        """For a program that is about to run for the first time. `seed` has to be new each time."""
        body = msgspec.json.encode(Identity(self._engine, _hashed(code), seed, int(time * 1000)))
        return _PREFIX + base64.urlsafe_b64encode(self._mac(project, body) + body).decode().rstrip("=")

    def read(self, fingerprint: str, code: str, *, project: str) -> Identity:
        """Raises InvalidRequest when it was not made here, for this project and this code."""
        body = self._opened(fingerprint, project)
        if body is None:
            raise InvalidRequest(
                "The fingerprint of this program was not made here. Send `program` items back as they were received.",
                code="invalid_fingerprint",
            )
        identity = msgspec.json.decode(body, type=Identity)
        if identity.code != _hashed(code):
            raise InvalidRequest(
                "The fingerprint belongs to other code. Send `program` items back as they were received.",
                code="invalid_fingerprint",
            )
        return identity

    def _opened(self, fingerprint: str, project: str) -> bytes | None:
        text = fingerprint.removeprefix(_PREFIX)
        if text == fingerprint or len(text) > 2000 or not text.isascii():
            return None
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except ValueError:
            return None
        body = raw[_MAC_BYTES:]
        return body if hmac.compare_digest(raw[:_MAC_BYTES], self._mac(project, body)) else None

    def _mac(self, project: str, body: bytes) -> bytes:
        bound = hashlib.sha256(project.encode()).digest()
        return hmac.digest(self._key, b"program\0" + bound + body, "sha256")[:_MAC_BYTES]


def _hashed(code: str) -> str:
    return hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest()[:32]
