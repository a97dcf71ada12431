"""Records in the index of the in-memory journal: what was said of each, in order of arrival."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from stateroom.journal.entries import Entry, RecordNoted, RecordPut, decode
from stateroom.journal.index import DropRecord, NoteRecord, PutRecord
from stateroom.journal.store import NoteRow, RecordName, RecordPlace, RecordRow

RecordChange: TypeAlias = PutRecord | NoteRecord | DropRecord
RecordKey: TypeAlias = tuple[str, str, str]
"""Project, collection, id."""


class _Said(NamedTuple):
    """One entry that speaks of a record."""

    branch: str
    seq: int
    at: int
    put: RecordPut | None
    note: bytes | None


class MemoryRecords:
    """What was said of each record by the age of the entry that says it; what follows from it is derived when asked."""

    def __init__(self) -> None:
        self._said: dict[RecordKey, dict[int, _Said]] = {}

    def add(self, project: str, branch: str, age: int, change: RecordChange, entry: Entry) -> RecordKey:
        """Take in an entry that speaks of a record; the record it speaks of."""
        key = (project, change.collection, change.id)
        what = None if isinstance(change, DropRecord) else decode(entry.kind, entry.body)
        put = what if isinstance(what, RecordPut) else None
        note = bytes(what.note) if isinstance(what, RecordNoted) else None
        said = _Said(branch, change.seq, entry.at, put, note)
        self._said.setdefault(key, {})[age] = said
        return key

    def forget(self, key: RecordKey, age: int) -> None:
        said = self._said[key]
        del said[age]
        if not said:
            del self._said[key]

    def find(self, project: str, collection: str, record_id: str) -> RecordRow | None:
        life = self._life((project, collection, record_id))
        return life[1] if life is not None else None

    def of(self, project: str, collection: str) -> list[RecordRow]:
        """The records of a collection, oldest first."""
        return [row for row in self.all() if (row.project, row.collection) == (project, collection)]

    def all(self) -> list[RecordRow]:
        """Every living record, oldest first."""
        lives = [life for life in map(self._life, self._said) if life is not None]
        return [row for _, row in sorted(lives, key=lambda life: life[0])]

    def places(self, project: str, collection: str, record_id: str) -> list[RecordPlace]:
        said = self._said.get((project, collection, record_id), {})
        dropped = _dropped(said)
        aged = [(age < dropped, said[age]) for age in sorted(said)]
        return [
            *[RecordPlace(each.branch, each.seq, False, gone) for gone, each in aged if each.put is not None],
            *[RecordPlace(each.branch, each.seq, True, gone) for gone, each in aged if each.note is not None],
        ]

    def notes(self, project: str, collection: str, record_id: str) -> list[NoteRow]:
        """What was noted since the record was last dropped, in order of arrival."""
        said = self._said.get((project, collection, record_id), {})
        dropped = _dropped(said)
        noted = [(age, said[age].at, said[age].note) for age in sorted(said) if age > dropped]
        return [NoteRow(age, at, msgspec.Raw(note)) for age, at, note in noted if note is not None]

    def unerased(self) -> list[RecordName]:
        return [RecordName(*key) for key in self._said if any(place.gone for place in self.places(*key))]

    def _life(self, key: RecordKey) -> tuple[int, RecordRow] | None:
        """The age of the first put since the record was last dropped, and the record by the latest."""
        first: tuple[int, _Said] | None = None
        latest: _Said | None = None
        for age, said in sorted(self._said.get(key, {}).items()):
            if said.note is not None:
                continue
            latest = said if said.put is not None else None
            if latest is None or first is None:
                first = None if latest is None else (age, said)
        if first is None or latest is None or latest.put is None:
            return None
        project, collection, record_id = key
        put = latest.put
        row = RecordRow(
            collection,
            record_id,
            latest.branch,
            latest.seq,
            msgspec.Raw(bytes(put.state)),
            first[1].at,
            latest.at,
            put.open,
            put.expires_at,
            project,
            put.blobs,
        )
        return first[0], row


def _dropped(said: dict[int, _Said]) -> int:
    """When the record was last dropped; -1: never."""
    return max((age for age, each in said.items() if each.put is None and each.note is None), default=-1)
