"""From an entry to its index rows: the one pure function that every store and every rebuild uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import msgspec

from stateroom.journal.entries import (
    BLOB_FIELDS,
    PART_FIELDS,
    ConversationCreated,
    ConversationDeleted,
    ConversationUpdated,
    Item,
    ItemFinished,
    ItemsAdded,
    Kind,
    RecordDropped,
    RecordNoted,
    RecordPut,
    RunEnded,
    RunStarted,
    RunSteered,
    ToolOutcome,
    decode,
)


class PutRun(msgspec.Struct, frozen=True, gc=False):
    id: str
    start: int
    surface: str
    created_at: int


class EndRun(msgspec.Struct, frozen=True, gc=False):
    start: int
    end: int
    status: str
    at: int


class PutItem(msgspec.Struct, frozen=True, gc=False):
    id: str
    seq: int
    position: int


class PutConversation(msgspec.Struct, frozen=True):
    id: str
    created_at: int
    metadata: dict[str, str]
    forked_from: str


class SetMetadata(msgspec.Struct, frozen=True):
    """Of the conversation whose branch this is."""

    metadata: dict[str, str]


class DropConversation(msgspec.Struct, frozen=True):
    id: str


class PutBlob(msgspec.Struct, frozen=True, gc=False):
    """An entry that refers to a blob."""

    digest: str
    seq: int


class PutRecord(msgspec.Struct, frozen=True, gc=False):
    """An entry that says the whole state of a record."""

    collection: str
    id: str
    seq: int
    open: bool
    expires_at: int


class NoteRecord(msgspec.Struct, frozen=True, gc=False):
    """An entry that says something else about a record."""

    collection: str
    id: str
    seq: int


class DropRecord(msgspec.Struct, frozen=True, gc=False):
    """An entry before which a record is no more."""

    collection: str
    id: str
    seq: int


IndexChange: TypeAlias = (
    PutRun
    | EndRun
    | PutItem
    | PutConversation
    | SetMetadata
    | DropConversation
    | PutBlob
    | PutRecord
    | NoteRecord
    | DropRecord
)

INDEXED: frozenset[str] = frozenset(
    {
        Kind.RUN_STARTED,
        Kind.RUN_STEERED,
        Kind.ITEM_FINISHED,
        Kind.RUN_ENDED,
        Kind.CONVERSATION_CREATED,
        Kind.CONVERSATION_UPDATED,
        Kind.CONVERSATION_DELETED,
        Kind.ITEMS_ADDED,
        Kind.RECORD_PUT,
        Kind.RECORD_NOTED,
        Kind.RECORD_DROPPED,
    }
)
"""Kinds that may have index rows; the bodies of others need not be decoded."""


RECORD_KINDS: frozenset[str] = frozenset({Kind.RECORD_PUT, Kind.RECORD_NOTED, Kind.RECORD_DROPPED})
"""Kinds that may stand among a run's entries and are none of its content."""


def index_changes(seq: int, kind: str, at: int, run: int, body: bytes) -> list[IndexChange]:
    """The index rows of one entry, in the order they are to be applied."""
    if kind not in INDEXED:
        return []
    return list(_changes(seq, at, run, decode(kind, body)))


def _changes(seq: int, at: int, run: int, record: Any) -> Iterator[IndexChange]:
    match record:
        case RunStarted():
            yield PutRun(record.id, seq, record.surface, at)
            yield from _items(seq, record.input)
            for digest in (record.settings.tools_blob, record.settings.instructions_blob):
                if digest:
                    yield PutBlob(digest, seq)
        case RunSteered():
            for item in record.input:
                yield from _blobs(seq, item)
        case ItemFinished():
            yield from _items(seq, [record.item])
        case ToolOutcome():
            yield from _blobs(seq, record.fields)
        case RunEnded():
            yield EndRun(run, seq, record.status, at)
        case ItemsAdded():
            yield from _added(seq, record)
        case ConversationCreated():
            yield PutConversation(record.id, at, record.metadata, record.forked_from)
        case ConversationUpdated():
            yield SetMetadata(record.metadata)
        case ConversationDeleted():
            yield DropConversation(record.id)
        case RecordPut():
            yield PutRecord(record.collection, record.id, seq, record.open, record.expires_at)
            for digest in record.blobs:
                yield PutBlob(digest, seq)
        case RecordNoted():
            yield NoteRecord(record.collection, record.id, seq)
            for digest in record.blobs:
                yield PutBlob(digest, seq)
        case RecordDropped():
            yield DropRecord(record.collection, record.id, seq)


def _items(seq: int, items: list[Item]) -> Iterator[IndexChange]:
    for position, item in enumerate(items):
        identifier = item.get("id")
        if identifier:
            yield PutItem(identifier, seq, position)
        yield from _blobs(seq, item)


def _added(seq: int, record: ItemsAdded) -> Iterator[IndexChange]:
    # Items without an id of their own are found by the addition's key; see `added_key_id`.
    yield PutItem(record.key, seq, 0)
    yield from _items(seq, record.items)


def _blobs(seq: int, item: Item) -> Iterator[IndexChange]:
    for field in PART_FIELDS:
        parts = item.get(field)
        if isinstance(parts, list):
            for part in parts:
                if isinstance(part, dict):
                    for name in BLOB_FIELDS:
                        if isinstance(part.get(name), str):
                            yield PutBlob(part[name], seq)
