"""Calls that do not fit their model: what is refused, with which numbers, and what is left out for those who ask."""

from __future__ import annotations

from typing import Any

import pytest

from stateroom.agent.tokens import estimate_items
from stateroom.errors import BackendRejected, BackendUnavailable
from stateroom.journal.entries import Usage
from stateroom.models.backend import Model, ModelCall
from tests.unit.runtime.stage import PROJECT, Play, PlayedBackend, Stage, answer_of, calls, says, user

WINDOW = 2_000
LONG = "long " * 200
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}


class Windowed(PlayedBackend):
    """Knows its length, counts a third less than is estimated, and refuses what is too long as servers do."""

    def __init__(self, *answers: list[Play], exact: bool = True, window: int | None = WINDOW) -> None:
        super().__init__(*answers)
        self.exact = exact
        self.window = window
        self.counted = 0
        self.error: Exception | None = None

    async def models(self) -> list[Model]:
        return [Model("m", context_tokens=self.window)]

    def length(self, call: ModelCall) -> int:
        return estimate_items(call.items) * 2 // 3

    async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
        self.counted += 1
        if self.error is not None:
            raise self.error
        return self.length(call), self.exact

    async def generate(self, call: ModelCall) -> Any:
        if self.length(call) > WINDOW:
            self.asked.append(None)  # type: ignore[arg-type]  # only its number counts here
            raise BackendRejected("too long", code="context_length_exceeded", param="input")
        async for batch in super().generate(call):
            yield batch


def dialogue(turns: int) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = [{"role": "system", "content": "be kind"}]
    for n in range(turns):
        items += [user(f"q{n} {LONG}"), {"role": "assistant", "content": f"a{n} {LONG}"}]
    return [*items, user("last")]


async def test_what_certainly_does_not_fit_is_refused_with_the_numbers() -> None:
    stage = Stage(backend=Windowed())
    run = await stage.ask(dialogue(6))
    assert run.failure is not None
    assert (run.failure.status, run.failure.code, run.failure.param) == (400, "context_length_exceeded", "input")
    length = estimate_items([*run.state.input_items(0)]) * 2 // 3
    assert f"maximum context length is {WINDOW} tokens, and the input has {length} tokens" in run.failure.message
    assert stage.backend.asked == [], "the model was not asked"


async def test_an_estimate_alone_refuses_nothing() -> None:
    stage = Stage(backend=Windowed(exact=False))
    run = await stage.ask(dialogue(4))
    assert run.failure is None
    refused = await stage.ask(dialogue(9))
    assert refused.failure is not None
    assert refused.failure.message == "too long"


async def test_what_is_short_is_not_counted() -> None:
    backend = Windowed()
    stage = Stage(backend=backend)
    await stage.ask("hi", truncation="auto")
    assert backend.counted == 0


async def test_truncation_auto_leaves_out_the_oldest_turns_before_the_model_is_asked() -> None:
    backend = Windowed(says("fits"))
    stage = Stage(backend=backend)
    run = await stage.ask(dialogue(9), truncation="auto")
    assert answer_of(run) == "fits"
    assert len(backend.asked) == 1
    texts = [text[:7].strip() for text in backend.asked[0].texts()]
    assert texts[0] == "be kind"
    assert texts[-1] == "last"
    assert texts[1][0] == "q", "whole turns go"
    assert 0.4 * WINDOW < backend.length(_call(backend)) <= 0.8 * WINDOW


def _call(backend: PlayedBackend) -> ModelCall:
    return ModelCall(model="m", items=backend.asked[-1].items, cache={})


async def test_what_was_left_out_stays_out_so_that_the_next_turns_only_grow() -> None:
    backend = Windowed()
    stage = Stage(backend=backend)
    run = await stage.ask(dialogue(9), truncation="auto")
    first = backend.asked[-1].texts()
    cache = run.branch.context.cache
    run = await stage.ask("more", previous=run.id, truncation="auto")
    assert backend.asked[-1].texts() == [*first, "ok", "more"]
    assert run.branch.context.cache is cache
    assert backend.counted <= 2


async def test_whoever_does_not_want_it_cut_gets_it_whole_or_an_error() -> None:
    stage = Stage(backend=Windowed())
    run = await stage.ask(dialogue(9), truncation="auto")
    whole = await stage.ask("more", previous=run.id)
    assert whole.failure is not None
    assert whole.failure.code == "context_length_exceeded"
    items = await stage.runs.input_items(PROJECT, run.id)
    assert len(items) == 20, "nothing is gone from the branch"


async def test_a_result_never_stands_without_its_call() -> None:
    backend = Windowed()
    stage = Stage(backend=backend)
    items = dialogue(1)[:-1]
    for n in range(9):
        items += [
            {"type": "function_call", "call_id": f"c{n}", "name": "look", "arguments": "{}"},
            {"type": "function_call_output", "call_id": f"c{n}", "output": LONG},
        ]
    run = await stage.ask(items, truncation="auto", tools=[TOOL])
    assert run.failure is None
    called: set[str] = set()
    for held in backend.asked[-1].items:
        if held.item.get("type") == "function_call":
            called.add(held.item["call_id"])
        elif held.item.get("type") == "function_call_output":
            assert held.item["call_id"] in called
    assert any(held.item.get("content", "").startswith("q0") for held in backend.asked[-1].items)


async def test_without_a_known_length_the_backend_s_error_says_so() -> None:
    backend = Windowed(says("fits"), window=None)
    stage = Stage(backend=backend)
    run = await stage.ask(dialogue(9), truncation="auto")
    assert answer_of(run) == "fits"
    assert backend.counted == 0
    assert len(backend.asked) > 1


@pytest.mark.parametrize("truncation", ["auto", "disabled"])
async def test_a_server_that_cannot_count_now_does_not_break_the_run(truncation: str) -> None:
    backend = Windowed()
    backend.error = BackendUnavailable("busy")
    stage = Stage(backend=backend)
    run = await stage.ask(dialogue(4), truncation=truncation)
    assert run.failure is None


async def test_what_the_model_said_of_its_length_spares_the_counting() -> None:
    backend = Windowed(says("one", usage=Usage(300, 10)), says("two", usage=Usage(900, 10)))
    stage = Stage(backend=backend)
    run = await stage.ask(dialogue(4)[:8])
    counted = backend.counted
    run = await stage.ask("more", previous=run.id)
    assert run.failure is None
    assert backend.counted == counted


async def test_tries_that_came_to_nothing_are_paid_for() -> None:
    stage = Stage(calls("b"), says("no call", usage=Usage(7, 3)))
    run = await stage.ask(tools=[TOOL, {**TOOL, "name": "b"}], tool_choice="none")
    assert run.state.usage == Usage(17, 8)


async def test_a_run_that_fails_says_what_its_tries_used() -> None:
    stage = Stage(*[says("no", usage=Usage(7, 3))] * 3)
    run = await stage.ask(tools=[TOOL], tool_choice="required")
    assert run.failure is not None
    view = await stage.runs.view(PROJECT, run.id)
    assert view.usage is not None
    assert view.usage.input >= 7
