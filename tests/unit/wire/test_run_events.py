"""The journal of a run as it is shown: every kind of entry, in order, with facts and without content."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from stateroom import ids
from stateroom.journal.entries import (
    Answered,
    Effect,
    Entry,
    Erased,
    Fact,
    ItemAbandoned,
    ItemFinished,
    RecordPut,
    RunEnded,
    RunSettings,
    RunStarted,
    RunSteered,
    ToolDecided,
    ToolIntent,
    ToolOutcome,
    Usage,
    encode,
    kind_of,
)
from stateroom.wire.run_events import run_events

KEY = ids.new_key()
BEGAN = 1_790_000_000_000


def entries(*timed: tuple[int, Fact]) -> list[Entry]:
    """Entries at these milliseconds after the begin of the run."""
    return [Entry(7 + at, kind_of(held), 7, BEGAN + ms, encode(held)) for at, (ms, held) in enumerate(timed)]


def shown(*timed: tuple[int, Fact]) -> list[dict[str, Any]]:
    told = []
    for event, entry in zip(run_events(held := entries(*timed)), held, strict=True):
        facts = dict(event.facts)
        head = {name: facts.pop(name) for name in ("object", "seq", "at", "kind", "elapsed_ms", "bytes")}
        assert head == {
            "object": "response.journal_entry",
            "seq": entry.seq,
            "at": entry.at / 1000,
            "kind": entry.kind,
            "elapsed_ms": entry.at - BEGAN,
            "bytes": len(entry.body),
        }
        assert event.id == str(entry.seq)
        told.append(facts)
    return told


def started(**others: Any) -> RunStarted:
    settings = RunSettings("asked-for", served="really", instructions="SECRET", tools=[{"type": "x", "is": "SECRET"}])
    user = {"role": "user", "content": "SECRET"}
    return RunStarted(f"resp_{KEY}", settings, [user, {"id": "msg_own", **user}], **others)


def test_the_begin_says_who_asked_what_of_whom() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    (begin,) = shown((0, started(key="key_1", previous="resp_0", frames=True, trace=trace)))
    assert begin == {
        "key_id": "key_1",
        "model": "asked-for",
        "served_model": "really",
        "surface": "responses",
        "background": False,
        "stream": True,
        "previous_response_id": "resp_0",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "input_items": [
            {"id": ids.item_id("msg", KEY, 0), "type": "message", "role": "user"},
            {"id": "msg_own", "type": "message", "role": "user"},
        ],
        "tools": 1,
    }


def test_an_answer_says_who_made_it_how_long_it_took_and_what_it_used() -> None:
    message = {"role": "assistant", "content": "SECRET"}
    by = Answered("vllm-1", 812, 95)
    _, reasoning, answer = shown(
        (0, started()),
        (500, ItemFinished(0, {"type": "reasoning", "summary": [], "content": "SECRET"})),
        (820, ItemFinished(1, message, "stop", Usage(10, 5, 2, 1), by)),
    )
    assert reasoning == {
        "output_index": 0,
        "item_id": ids.item_id("rs", KEY, ids.OUTPUT_BASE),
        "item_type": "reasoning",
    }
    assert answer == {
        "output_index": 1,
        "item_id": ids.item_id("msg", KEY, ids.OUTPUT_BASE + 1),
        "item_type": "message",
        "finish": "stop",
        "usage": {
            "input_tokens": 10,
            "cached_tokens": 2,
            "output_tokens": 5,
            "reasoning_tokens": 1,
            "estimated": False,
        },
        "model": "really",
        "backend": "vllm-1",
        "duration_ms": 812,
        "first_token_ms": 95,
    }


def test_an_answer_of_an_older_version_says_what_it_knows() -> None:
    old = Entry(8, "item.finished", 7, BEGAN, b'{"index":0,"item":{"content":"x"},"finish":"stop"}')
    *_, answer = run_events([*entries((0, started())), old])
    assert answer.facts["finish"] == "stop"
    assert not {"backend", "duration_ms", "first_token_ms"} & answer.facts.keys()


def test_a_hosted_call_says_what_it_does_to_the_world_how_often_it_was_tried_and_how_it_ended() -> None:
    call = {"type": "hosted_call", "call_id": "call_1", "tool": "stateroom:x", "name": "look", "arguments": "SECRET"}
    _, item, first, second, outcome = shown(
        (0, started()),
        (10, ItemFinished(0, call, "stop")),
        (11, ToolIntent(0, "stateroom:x", Effect.READ)),
        (5000, ToolIntent(0, "stateroom:x", Effect.READ, 2)),
        (5250, ToolOutcome(0, "SECRET", failed=True)),
    )
    named = item["item_id"]
    assert (item["call_id"], item["name"]) == ("call_1", "look")
    assert first == {"output_index": 0, "item_id": named, "tool": "stateroom:x", "effect": "read", "attempt": 1}
    assert second["attempt"] == 2
    assert outcome == {"output_index": 0, "item_id": named, "outcome": "failed", "duration_ms": 250}


def test_an_outcome_that_nobody_knows_says_so() -> None:
    *_, outcome = shown((0, started()), (9, ToolOutcome(0, "SECRET", unknown=True)))
    assert outcome == {"output_index": 0, "outcome": "unknown"}


def test_the_end_says_how_it_ended_and_after_how_long() -> None:
    error = {"code": "backend_timeout", "message": "SECRET", "type": "server_error", "status": 504}
    *_, end = shown((0, started()), (90, RunEnded("failed", error=error)))
    assert end == {"status": "failed", "error_code": "backend_timeout", "error_status": 504, "duration_ms": 90}
    *_, end = shown((0, started()), (90, RunEnded("incomplete", Usage(1, 2, estimated=True), "max_output_tokens")))
    assert end["reason"] == "max_output_tokens"
    assert end["usage"]["estimated"] is True


def test_what_else_happened_is_named() -> None:
    own, foreign = ids.new_id("whd"), "SECRET of a client"
    _, steer, gone, mine, theirs, erased = shown(
        (0, started()),
        (1, RunSteered("steer_1", [{"role": "user", "content": "SECRET"}])),
        (2, ItemAbandoned(3)),
        (3, RecordPut("webhook_delivery", own, msgspec.Raw(b'{"a":"SECRET"}'))),
        (4, RecordPut("idempotency", foreign, msgspec.Raw(b"{}"))),
        (5, Erased("item.finished", BEGAN + 5)),
    )
    assert steer == {"steer_id": "steer_1", "items": 1}
    assert gone == {"output_index": 3}
    assert mine == {"collection": "webhook_delivery", "record_id": own}
    assert theirs == {"collection": "idempotency"}
    assert erased == {"was": "item.finished", "erased_at": (BEGAN + 5) / 1000}


def test_nothing_of_the_content_is_shown() -> None:
    told = shown(
        (0, started()),
        (1, RunSteered("steer_1", [{"role": "user", "content": "SECRET"}])),
        (2, ItemFinished(0, {"type": "hosted_call", "call_id": "c", "name": "n", "arguments": "SECRET"}, "stop")),
        (3, ToolOutcome(0, "SECRET")),
        (4, ItemFinished(1, {"role": "assistant", "content": [{"type": "output_text", "text": "SECRET"}]})),
        (5, RunEnded("failed", error={"code": "x", "message": "SECRET"})),
    )
    assert "SECRET" not in json.dumps(told)


def test_who_made_an_answer_takes_little_room() -> None:
    item = {"role": "assistant", "content": "yes"}
    without = encode(ItemFinished(0, item, "stop"))
    assert len(encode(ItemFinished(0, item, "stop", by=Answered("10.0.0.12:8000", 12_345, 1_234)))) - len(without) <= 45


def test_a_decision_on_a_call_says_what_it_was_and_who_made_it() -> None:
    own = f"mcpr_{ids.new_key()}8002"
    _, call, *decisions = shown(
        (0, started()),
        (5, ItemFinished(0, {"type": "shell_call", "call_id": "call_1", "action": {"commands": ["SECRET"]}})),
        (6, ToolDecided(0, "ask", "rule 2")),
        (7, ToolDecided(0, "allow", own)),
        (8, ToolDecided(0, "deny", "an id that a client made up: SECRET")),
    )
    place = {"output_index": 0, "item_id": call["item_id"]}
    assert decisions == [
        {**place, "decision": "ask", "decided_by": "rule 2"},
        {**place, "decision": "allow", "decided_by": own},
        {**place, "decision": "deny", "decided_by": "approval"},
    ]
