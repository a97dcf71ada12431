"""The journal of a run as its users see it: who, what, when, how long, by which backend. Never the content itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from stateroom import ids
from stateroom.journal.entries import (
    Entry,
    Erased,
    Fact,
    Item,
    ItemAbandoned,
    ItemFinished,
    RecordDropped,
    RecordNoted,
    RecordPut,
    RunEnded,
    RunStarted,
    RunSteered,
    ToolDecided,
    ToolIntent,
    ToolOutcome,
    Usage,
    decode,
    item_prefix,
)

OBJECT: Final = "response.journal_entry"

_OWN_ID: Final = re.compile(r"[a-z]{2,24}_[0-9a-hjkmnp-tv-z]{26}")
"""What may be shown of a record's id: one of ours; others may hold what a client wrote."""

_DECIDER: Final = re.compile(r"default|rule \d+|mcpr_[0-9a-hjkmnp-tv-z]{30}")
"""Likewise of who decided on a call."""


class RunEvent(msgspec.Struct, frozen=True):
    """One entry, ready to be shown."""

    id: str
    """Its seq, by which lists are paged."""
    facts: dict[str, Any]


def run_events(entries: Iterable[Entry]) -> list[RunEvent]:
    """What the entries of one run say of it, in their order."""
    telling = _Telling()
    return [RunEvent(str(entry.seq), telling.tell(entry)) for entry in entries]


class _Telling:
    """Goes through the entries and remembers what later ones refer to."""

    def __init__(self) -> None:
        self._began = 0
        self._key = ""
        self._model = ""
        self._items: dict[int, str] = {}
        """Ids of output items, by index."""
        self._intents: dict[int, int] = {}
        """When the call of an item was begun, by index."""

    def tell(self, entry: Entry) -> dict[str, Any]:
        record = decode(entry.kind, entry.body)
        if isinstance(record, RunStarted):
            self._began = entry.at
            self._key = ids.key_of(record.id)
            self._model = record.settings.served or record.settings.model
        head: dict[str, Any] = {
            "object": OBJECT,
            "seq": entry.seq,
            "at": entry.at / 1000,
            "kind": entry.kind,
            "elapsed_ms": max(0, entry.at - self._began) if self._began else 0,
            "bytes": len(entry.body),
        }
        facts = self._facts(record, entry.at)
        return {**head, **{name: value for name, value in facts.items() if value not in (None, "")}}

    def _facts(self, record: Fact, at: int) -> dict[str, Any]:
        match record:
            case RunStarted():
                return self._started(record)
            case RunSteered():
                return {"steer_id": record.id, "items": len(record.input)}
            case ItemFinished():
                return self._finished(record)
            case ItemAbandoned():
                return {"output_index": record.index}
            case ToolDecided():
                return {**self._place(record.index), "decision": record.decision, "decided_by": _decider(record.by)}
            case ToolIntent():
                self._intents[record.index] = at
                return {
                    **self._place(record.index),
                    "tool": record.tool,
                    "effect": str(record.effect),
                    "attempt": record.attempt,
                }
            case ToolOutcome():
                begun = self._intents.pop(record.index, None)
                return {
                    **self._place(record.index),
                    "outcome": "unknown" if record.unknown else "failed" if record.failed else "completed",
                    "duration_ms": max(0, at - begun) if begun is not None else None,
                }
            case RunEnded():
                return self._ended(record, at)
            case RecordPut() | RecordNoted() | RecordDropped():
                own = record.id if _OWN_ID.fullmatch(record.id) else None
                return {"collection": record.collection, "record_id": own}
            case Erased():
                return {"was": record.was, "erased_at": record.at / 1000}
            case _:
                return {}

    def _started(self, started: RunStarted) -> dict[str, Any]:
        settings = started.settings
        return {
            "key_id": started.key,
            "model": settings.model,
            "served_model": settings.served,
            "surface": started.surface,
            "background": started.background,
            "stream": started.frames and not started.background,
            "previous_response_id": started.previous,
            "conversation_id": started.conversation,
            "trace_id": started.trace[3:35],
            "input_items": [self._named(item, position) for position, item in enumerate(started.input)],
            "tools": len(settings.tools),
        }

    def _finished(self, finished: ItemFinished) -> dict[str, Any]:
        item, by = finished.item, finished.by
        self._items[finished.index] = named = ids.item_id(
            item_prefix(item), self._key, ids.OUTPUT_BASE + finished.index
        )
        facts = {
            "output_index": finished.index,
            "item_id": named,
            "item_type": item.get("type", "message"),
            "item_status": item.get("status"),
            "call_id": item.get("call_id"),
            "name": item.get("name"),
            "finish": finished.finish,
            "usage": _usage(finished.usage),
        }
        if by is not None:
            first = by.first_ms if by.first_ms >= 0 else None
            facts |= {"model": self._model, "backend": by.backend, "duration_ms": by.ms, "first_token_ms": first}
        return facts

    def _ended(self, ended: RunEnded, at: int) -> dict[str, Any]:
        error = ended.error or {}
        return {
            "status": ended.status,
            "reason": ended.reason,
            "error_code": error.get("code"),
            "error_status": error.get("status"),
            "usage": _usage(ended.usage),
            "duration_ms": max(0, at - self._began) if self._began else None,
        }

    def _place(self, index: int) -> dict[str, Any]:
        return {"output_index": index, "item_id": self._items.get(index)}

    def _named(self, item: Item, position: int) -> dict[str, Any]:
        named = item.get("id") or ids.item_id(item_prefix(item), self._key, position)
        told = {"id": named, "type": item.get("type", "message"), "role": item.get("role")}
        return {name: value for name, value in told.items() if value is not None}


def _decider(by: str) -> str:
    return by if _DECIDER.fullmatch(by) else "approval"


def _usage(used: Usage | None) -> dict[str, Any] | None:
    if used is None:
        return None
    return {
        "input_tokens": used.input,
        "cached_tokens": used.cached,
        "output_tokens": used.output,
        "reasoning_tokens": used.reasoning,
        "estimated": used.estimated,
    }
