"""Idempotency keys: a request that is sent again makes nothing again.

What a key made is remembered by a record that is committed in the same append as the thing itself, so that there is no
moment at which a crash could leave the one without the other. The record holds hashes and an id, no content. Only what
was made is remembered: a request that was refused may be mended and sent again under its key.

Who makes something, does it inside a claim:

    async with idempotency.claim(project, key, method, path, body) as claim:
        if claim.made:
            return ...  # what an earlier request with this key made, by its id
        made = await things.create(..., also=claim.also(thing_id))
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakValueDictionary

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Fact
from stateroom.runtime.records import Records

COLLECTION: Final = "idempotency"
KEPT_SECONDS: Final = 24 * 3_600
UNSTORED_SECONDS: Final = 60.0
"""How long after its end a thing that is kept nowhere answers for its key."""
UNSTORED_MAX: Final = 1_024
"""Such things at the same time; the oldest go first."""

_KEY: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,254}[\x21-\x7e])?")


class Remembered(msgspec.Struct, frozen=True):
    """State of a record: what a key was used for."""

    asked: str
    """Hash of the request."""
    made: str
    """Id of what it made."""


class _Unstored(msgspec.Struct, frozen=True):
    asked: str
    thing: Any


class Claim:
    """Keeps others from making something under the same key meanwhile. Without a key it does nothing."""

    made = ""
    """Id of what an earlier request with this key made."""
    kept: Any = None
    """What it made, when that is stored nowhere."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def also(self, made: str) -> tuple[Fact, ...]:
        """What has to be committed together with the thing of this id."""
        return ()

    def keep(self, thing: Any, ended: asyncio.Future[Any]) -> None:
        """Remember in memory a thing that is stored nowhere, until a minute after it has ended."""


class _KeyedClaim(Claim):
    def __init__(self, idempotency: Idempotency, project: str, record_id: str, asked: str) -> None:
        self._idempotency = idempotency
        self._project = project
        self._record_id = record_id
        self._asked = asked
        self._lock = idempotency.lock(project, record_id)

    async def __aenter__(self) -> Self:
        await self._lock.acquire()
        try:
            self.made, self.kept = await self._idempotency.find(self._project, self._record_id, self._asked)
        except BaseException:
            self._lock.release()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def also(self, made: str) -> tuple[Fact, ...]:
        return (self._idempotency.remember(self._record_id, self._asked, made),)

    def keep(self, thing: Any, ended: asyncio.Future[Any]) -> None:
        self._idempotency.keep(self._project, self._record_id, self._asked, thing, ended)


_NO_CLAIM: Final = Claim()


class Idempotency:
    """All keys of this process's journal."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._remembered = records.collection(COLLECTION, Remembered)
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self._unstored: dict[tuple[str, str], _Unstored] = {}

    def claim(self, project: str, key: str, *asked: str | bytes) -> Claim:
        """The right to make what is asked for under this key; '' is no key. Raises InvalidRequest.

        `asked` is the whole request: its method, path, query and body, or hashes of them. On entering the claim another
        request under the key is waited for, and one that asked for something else raises InvalidRequest.
        """
        if not key:
            return _NO_CLAIM
        if not _KEY.fullmatch(key):
            message = "An idempotency key has 1 to 256 printable ASCII characters."
            raise InvalidRequest(message, code="invalid_value", param="Idempotency-Key")
        return _KeyedClaim(self, project, f"idem_{_hash([key])}", _hash(asked))

    def lock(self, project: str, record_id: str) -> asyncio.Lock:
        """Taken by who makes something under a key."""
        lock = self._locks.get((project, record_id))
        if lock is None:
            lock = self._locks[project, record_id] = asyncio.Lock()
        return lock

    async def find(self, project: str, record_id: str, asked: str) -> tuple[str, Any]:
        """What was made under a key: its id, or the thing itself; neither when nothing was. Raises InvalidRequest."""
        unstored = self._unstored.get((project, record_id))
        if unstored is not None:
            _check(unstored.asked, asked)
            return "", unstored.thing
        held = await self._remembered.get(project, record_id)
        if held is None or held.expires_at <= self._records.now():
            return "", None
        _check(held.state.asked, asked)
        return held.state.made, None

    def remember(self, record_id: str, asked: str, made: str) -> Fact:
        """The record of what a key made."""
        expires_at = self._records.now() + KEPT_SECONDS * 1000
        return self._remembered.put(record_id, Remembered(asked, made), expires_at=expires_at)

    def keep(self, project: str, record_id: str, asked: str, thing: Any, ended: asyncio.Future[Any]) -> None:
        """As `Claim.keep`."""
        name, kept = (project, record_id), _Unstored(asked, thing)
        self._unstored.pop(name, None)
        while len(self._unstored) >= UNSTORED_MAX:
            del self._unstored[next(iter(self._unstored))]
        self._unstored[name] = kept

        def forget() -> None:
            if self._unstored.get(name) is kept:
                del self._unstored[name]

        loop = asyncio.get_running_loop()
        ended.add_done_callback(lambda _: loop.call_later(UNSTORED_SECONDS, forget))


def _check(before: str, now: str) -> None:
    if before != now:
        raise InvalidRequest(
            "This idempotency key was used for another request: its path or its body was different. "
            "Send the request as it was, or under a new key.",
            code="idempotency_conflict",
            param="Idempotency-Key",
        )


def _hash(parts: Sequence[str | bytes]) -> str:
    """A hash of all parts, each of them with its length, so that none can run into the next."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
