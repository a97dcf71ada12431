"""The small numbers under which words stand in the file. A number is never given to another word.

A word without a number stands there as itself.
"""

from __future__ import annotations

import hashlib
from typing import Final

from stateroom.errors import JournalNewer
from stateroom.journal.entries import Entry, Erased, Kind, encode

KIND_CODES: Final[dict[str, int]] = {
    Kind.RUN_STARTED: 2,
    Kind.ITEM_FINISHED: 3,
    Kind.ITEM_ABANDONED: 4,
    Kind.TOOL_INTENT: 5,
    Kind.TOOL_OUTCOME: 6,
    Kind.RUN_ENDED: 7,
    Kind.CONVERSATION_CREATED: 8,
    Kind.CONVERSATION_UPDATED: 9,
    Kind.CONVERSATION_DELETED: 10,
    Kind.ITEMS_ADDED: 11,
    Kind.ERASED: 12,
    Kind.RECORD_PUT: 13,
    Kind.RECORD_NOTED: 14,
    Kind.RECORD_DROPPED: 15,
    Kind.RUN_STEERED: 16,
    Kind.TOOL_DECIDED: 17,
}
"""From 2 to 63: SQLite keeps each of them in one byte, so that a change of kind does not change a row's size."""
PADDED: Final = 64
"""Added to the code of an entry whose body was shortened and filled up with spaces to its former length."""
STATUS_CODES: Final[dict[str, int]] = {"in_progress": 0, "completed": 1, "incomplete": 2, "failed": 3, "cancelled": 4}
SURFACE_CODES: Final[dict[str, int]] = {"responses": 0, "chat": 1}

_KINDS: Final[dict[int, str]] = {code: str(kind) for kind, code in KIND_CODES.items()}
_ERASED: Final = _KINDS[KIND_CODES[Kind.ERASED]]
_ERASED_BYTES: Final = 7
_STATUSES: Final[dict[int, str]] = {code: status for status, code in STATUS_CODES.items()}
_SURFACES: Final[dict[int, str]] = {code: surface for surface, code in SURFACE_CODES.items()}


def read_entry(seq: int, code: int, run: int, at: int, body: bytes) -> Entry:
    """An entry as it was written. Raises JournalNewer when its kind is one that this version does not know."""
    kind = _KINDS.get(code)
    if kind is not None and kind is not _ERASED:
        return Entry(seq, kind, run, at, body)
    if kind is _ERASED:
        was = _KINDS.get(body[0], "")
        return Entry(seq, kind, run, at, encode(Erased(was, int.from_bytes(body[1:_ERASED_BYTES], "big"))))
    if code - PADDED in _KINDS:
        return Entry(seq, _KINDS[code - PADDED], run, at, body.rstrip(b" "))
    raise JournalNewer(f"An entry is of kind {code}, which this version does not know. Start a newer one.")


def erased_body(was: str, at: int, length: int) -> bytes:
    """What is kept of an erased entry, filled up to the length of what was there."""
    return (bytes((KIND_CODES[was],)) + at.to_bytes(_ERASED_BYTES - 1, "big")).ljust(length, b"\0")


def pack_word(codes: dict[str, int], word: str) -> int | str:
    """The number of `word`, or the word itself."""
    return codes.get(word, word)


def status_name(value: int | str) -> str:
    return value if isinstance(value, str) else _STATUSES[value]


def surface_name(value: int | str) -> str:
    return value if isinstance(value, str) else _SURFACES[value]


def pack_digest(digest: str) -> bytes | str:
    """A SHA-256 hash as its 32 bytes; anything else as it is."""
    if len(digest) != 64:
        return digest
    try:
        packed = bytes.fromhex(digest)
    except ValueError:
        return digest
    return packed if packed.hex() == digest else digest


def pack_identifier(identifier: str) -> bytes:
    """Sixteen bytes that stand for an id of any length and content."""
    return hashlib.blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def pack_record(collection: str, record_id: str) -> bytes:
    """The same for a record, whose id is its own within its collection."""
    return pack_identifier(f"{collection}\0{record_id}")
