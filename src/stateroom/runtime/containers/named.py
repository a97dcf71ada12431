"""What containers name of the content store, remembered so that each note of a commit is read once and not each time.

What is remembered is what was read up to a mark, and each look reads the notes beyond it: a note that is added later
has a greater mark, whoever adds it. Notes that are erased meanwhile stay remembered until `forget`; to know too much
spares content for longer, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from typing import Final

import msgspec

from stateroom.runtime.containers.state import CommitNote, Container, EgressNote, Note, read_note
from stateroom.runtime.records import Collection, Held

REMEMBERED_BYTES: Final = 8 * 1024 * 1024
"""Of all containers together. Of those that find no room all notes are read each time."""
_DIGEST_BYTES: Final = 32
_OVERHEAD_BYTES: Final = 400
"""What it takes to remember a container that names nothing."""


class Named(msgspec.Struct, frozen=True):
    """What the notes of a container name."""

    mark: int = -1
    """Of the last note that was read."""
    commits: int = 0
    decisions: int = 0
    """About connections."""

    packed: bytes = b""
    """Digests of what its commits hold, each once."""

    def digests(self, held: Held[Container]) -> Iterator[str]:
        """All that is named, with what the container's state names."""
        if held.state.head is not None:
            yield held.state.head.tree
            if held.state.head.interpreter:
                yield held.state.head.interpreter
        for digest in _unpacked(self.packed):
            yield digest.hex()

    @property
    def weight(self) -> int:
        return len(self.packed) + _OVERHEAD_BYTES


_NOTHING: Final = Named()


class NamedContent:
    """What the containers of this process's journal name."""

    def __init__(self, collection: Collection[Container], *, remembered_bytes: int = REMEMBERED_BYTES) -> None:
        self._collection = collection
        self._room = remembered_bytes
        self._known: dict[tuple[str, str], Named] = {}

    async def of(self, held: Held[Container]) -> Named:
        """What is named by the notes about a container, by all that were there when this was called."""
        name = held.project, held.id
        known = self._known.get(name, _NOTHING)
        latest = await self._read(held, known)
        if latest is not known:
            self._drop(name)
            if latest.weight <= self._room:
                self._known[name] = latest
                self._room -= latest.weight
        return latest

    def forget(self, held: Held[Container]) -> None:
        """Notes of a container were erased."""
        self._drop((held.project, held.id))

    def keep_only(self, names: set[tuple[str, str]]) -> None:
        """Forget all but these, by project and id."""
        for name in self._known.keys() - names:
            self._drop(name)

    async def _read(self, held: Held[Container], known: Named) -> Named:
        """The same with what was noted since."""
        mark, commits, decisions = known.mark, known.commits, known.decisions
        found: dict[bytes, None] = {}
        async with aclosing(self._collection.note_rows(held.project, held.id, after=known.mark)) as rows:
            async for row in rows:
                note, mark = read_note(row.note), row.mark
                found.update(dict.fromkeys(_digests(note)))
                commits += isinstance(note, CommitNote)
                decisions += len(note.decisions) if isinstance(note, EgressNote) else 0
        if mark == known.mark:
            return known
        there = set(_unpacked(known.packed))
        packed = known.packed + b"".join([digest for digest in found if digest not in there])
        return Named(mark, commits, decisions, packed)

    def _drop(self, name: tuple[str, str]) -> None:
        known = self._known.pop(name, None)
        if known is not None:
            self._room += known.weight


def _unpacked(packed: bytes) -> Iterator[bytes]:
    for start in range(0, len(packed), _DIGEST_BYTES):
        yield packed[start : start + _DIGEST_BYTES]


def _digests(note: Note) -> list[bytes]:
    if not isinstance(note, CommitNote):
        return []
    return [bytes.fromhex(digest) for digest in (note.tree, note.interpreter) if digest]
