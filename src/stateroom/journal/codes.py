"""The small numbers under which words stand in the file. A number is never given to another word.

A word without a number stands there as itself.
"""

from __future__ import annotations

from typing import Final

from stateroom.errors import JournalNewer
from stateroom.journal.entries import Kind

KIND_CODES: Final[dict[str, int]] = {
    Kind.RUN_STARTED: 1,
    Kind.ITEM_FINISHED: 2,
    Kind.ITEM_ABANDONED: 3,
    Kind.TOOL_INTENT: 4,
    Kind.TOOL_OUTCOME: 5,
    Kind.RUN_ENDED: 6,
    Kind.CONVERSATION_CREATED: 7,
    Kind.CONVERSATION_UPDATED: 8,
    Kind.CONVERSATION_DELETED: 9,
    Kind.ITEMS_ADDED: 10,
    Kind.ERASED: 11,
}
STATUS_CODES: Final[dict[str, int]] = {"in_progress": 0, "completed": 1, "incomplete": 2, "failed": 3, "cancelled": 4}
SURFACE_CODES: Final[dict[str, int]] = {"responses": 0}

_KINDS: Final[dict[int, str]] = {code: str(kind) for kind, code in KIND_CODES.items()}
_STATUSES: Final[dict[int, str]] = {code: status for status, code in STATUS_CODES.items()}
_SURFACES: Final[dict[int, str]] = {code: surface for surface, code in SURFACE_CODES.items()}


def kind_name(code: int) -> str:
    """The kind of an entry. Raises JournalNewer for one that this version does not know."""
    try:
        return _KINDS[code]
    except KeyError:
        raise JournalNewer(f"An entry has kind {code}, which this version does not know: use a newer one.") from None


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
