"""What every backend must do, whatever stands behind it: a scripted server, an engine, a model that says what it likes.

Each case is a coroutine over a backend and a model name that raises AssertionError when the promise is broken. A test
runs them all over its backend:

    @pytest.mark.parametrize("case", backend_conformance.CASES)
    async def test_it_conforms(case, backend):
        await case(backend, "model-name")

The cases ask for little text (`SHORT`), so that a small engine passes them in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import msgspec

from stateroom.journal.entries import Item
from stateroom.models.backend import (
    Backend,
    ContextItem,
    Delta,
    Finished,
    FunctionSpec,
    ModelCall,
    TextDelta,
    ToolCallDelta,
)

Case: TypeAlias = Callable[[Backend, str], Awaitable[None]]

SHORT: Final = 16
"""Output tokens that a case asks for at most, where it does not matter what is said; some servers refuse fewer."""

REASONS: Final = frozenset({"stop", "length", "content_filter"})

WEATHER: Final = FunctionSpec(
    "get_weather",
    "The weather at a place.",
    {
        "type": "object",
        "properties": {"place": {"type": "string", "enum": ["Oslo", "Rome"]}},
        "required": ["place"],
        "additionalProperties": False,
    },
)
CLOCK: Final = FunctionSpec("get_time", "The time of day.", {"type": "object", "properties": {}})


def make_call(model: str, *items: Item, **options: Any) -> ModelCall:
    """A call over these packed items, in a context of its own."""
    held = [ContextItem(f"item_{position}", item) for position, item in enumerate(items)]
    return ModelCall(model=model, items=held, cache={}, **options)


def user(text: str) -> Item:
    return {"role": "user", "content": text}


async def collect(backend: Backend, call: ModelCall) -> list[Delta]:
    """All deltas of an answer; checks how it ends."""
    deltas = [delta async for batch in backend.generate(call) for delta in batch]
    assert deltas, "an answer without a delta"
    assert isinstance(deltas[-1], Finished), f"the last delta is {deltas[-1]!r}"
    assert not any(isinstance(delta, Finished) for delta in deltas[:-1]), "an answer that finished twice"
    assert deltas[-1].reason in REASONS, f"the unknown reason {deltas[-1].reason!r}"
    return deltas


def text_of(deltas: list[Delta]) -> str:
    return "".join([delta.text for delta in deltas if isinstance(delta, TextDelta)])


def calls_of(deltas: list[Delta]) -> list[tuple[str, str, str]]:
    """(call id, name, arguments) of each call; checks that its pieces are in order."""
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        if isinstance(delta, ToolCallDelta):
            if delta.key not in calls:
                assert delta.call_id, "the first piece of a call has no id"
                assert delta.name, "the first piece of a call has no name"
                calls[delta.key] = [delta.call_id, delta.name, ""]
            calls[delta.key][2] += delta.arguments
    listed = [(call_id, name, arguments) for call_id, name, arguments in calls.values()]
    assert len({call_id for call_id, _, _ in listed}) == len(listed), "two calls with one id"
    return listed


async def it_lists_the_model(backend: Backend, model: str) -> None:
    models = await backend.models()
    assert model in [one.id for one in models]


async def it_answers_in_batches_that_end_in_finished(backend: Backend, model: str) -> None:
    deltas = await collect(backend, make_call(model, user("Say hello."), max_output_tokens=SHORT))
    assert text_of(deltas)


async def it_answers_without_streaming(backend: Backend, model: str) -> None:
    deltas = await collect(backend, make_call(model, user("Say hello."), stream=False, max_output_tokens=SHORT))
    assert text_of(deltas)


async def it_says_what_an_answer_used(backend: Backend, model: str) -> None:
    deltas = await collect(backend, make_call(model, user("Say hello."), max_output_tokens=SHORT))
    assert isinstance(deltas[-1], Finished)
    usage = deltas[-1].usage
    if usage is not None:
        assert usage.input > 0
        assert 0 < usage.output <= SHORT
        assert 0 <= usage.cached <= usage.input


async def it_stops_at_the_token_limit(backend: Backend, model: str) -> None:
    deltas = await collect(
        backend, make_call(model, user("Count from 1 to 100, in words."), max_output_tokens=2, temperature=0.0)
    )
    assert isinstance(deltas[-1], Finished)
    assert deltas[-1].reason == "length"


async def it_goes_on_with_a_growing_context(backend: Backend, model: str) -> None:
    call = make_call(model, user("My name is Ada."), max_output_tokens=SHORT)
    first = text_of(await collect(backend, call))
    items = [
        *call.items,
        ContextItem("item_1", {"role": "assistant", "content": first}),
        ContextItem("item_2", user("What is my name?")),
    ]
    assert text_of(await collect(backend, msgspec.structs.replace(call, items=items)))


async def it_takes_instructions_and_every_role(backend: Backend, model: str) -> None:
    items = (
        {"role": "developer", "content": "Answer briefly."},
        user("Hello."),
        {"role": "assistant", "content": [{"type": "output_text", "text": "Hello!"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Say hello"}, {"type": "input_text", "text": "!"}]},
    )
    call = make_call(model, *items, instructions="You are helpful.", max_output_tokens=SHORT)
    assert text_of(await collect(backend, call))


async def it_calls_a_function_that_it_must_call(backend: Backend, model: str) -> None:
    question = user("What is the weather in Oslo?")
    for choice in ("required", ("get_weather",)):
        call = make_call(model, question, functions=(WEATHER,), tool_choice=choice, max_output_tokens=64)
        calls = calls_of(await collect(backend, call))
        assert calls, f"no call with tool_choice {choice!r}"
        assert {name for _, name, _ in calls} == {"get_weather"}
        for _, _, arguments in calls:
            assert isinstance(msgspec.json.decode(arguments), dict)


async def it_calls_nothing_when_it_must_not(backend: Backend, model: str) -> None:
    call = make_call(
        model,
        user("What is the weather in Oslo?"),
        functions=(WEATHER, CLOCK),
        tool_choice="none",
        max_output_tokens=SHORT,
    )
    assert not calls_of(await collect(backend, call))


async def it_reads_calls_and_their_results(backend: Backend, model: str) -> None:
    items = (
        user("What is the weather in Oslo?"),
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Look it up."}]},
        {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"place":"Oslo"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "Rain, 7 degrees."},
    )
    call = make_call(model, *items, functions=(WEATHER,), max_output_tokens=SHORT)
    await collect(backend, call)


async def it_reads_histories_that_are_out_of_order(backend: Backend, model: str) -> None:
    items = (
        {"type": "function_call_output", "call_id": "call_0", "output": "of a call that is not there"},
        user("What is the weather in Oslo and in Rome?"),
        {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": '{"place":"Oslo"}'},
        {"type": "function_call", "call_id": "call_2", "name": "get_weather", "arguments": "cut of"},
        user("Quickly, please."),
        {"type": "function_call_output", "call_id": "call_1", "output": [{"type": "input_text", "text": "Rain."}]},
        {"type": "web_search_call", "status": "completed"},
        user("And now?"),
    )
    call = make_call(model, *items, functions=(WEATHER,), tool_choice="none", max_output_tokens=SHORT)
    assert text_of(await collect(backend, call))


async def it_keeps_to_a_json_schema(backend: Backend, model: str) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "string", "enum": ["yes", "no"]}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    format = {"type": "json_schema", "name": "verdict", "schema": schema, "strict": True}
    call = make_call(model, user("Is rain wet?"), format=format, max_output_tokens=64, temperature=0.0)
    held = msgspec.json.decode(text_of(await collect(backend, call)))
    assert set(held) == {"answer"}
    assert held["answer"] in ("yes", "no")


async def it_goes_on_from_a_prefill_when_it_says_so(backend: Backend, model: str) -> None:
    if not backend.can_prefill:
        return
    call = make_call(model, user("Count from 1 to 20, in words."), temperature=0.0, max_output_tokens=SHORT)
    whole = text_of(await collect(backend, call))
    begun = whole[: len(whole) // 2]
    again = msgspec.structs.replace(call, cache={}, prefill=begun, max_output_tokens=2 * SHORT)
    more = text_of(await collect(backend, again))
    assert more
    assert not more.startswith(begun), "the given text came again"


async def it_stops_when_the_iterator_is_closed(backend: Backend, model: str) -> None:
    """And serves the next call at once."""
    answer = backend.generate(make_call(model, user("Count from 1 to 1000, in words."), max_output_tokens=400))
    async with contextlib.aclosing(answer), asyncio.timeout(60):
        await anext(aiter(answer))
    async with asyncio.timeout(60):
        await collect(backend, make_call(model, user("Say hello."), max_output_tokens=SHORT))


async def it_stops_when_the_task_is_cancelled(backend: Backend, model: str) -> None:
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in backend.generate(make_call(model, user("Count to 1000, in words."), max_output_tokens=400)):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(read())
    async with asyncio.timeout(60):
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await collect(backend, make_call(model, user("Say hello."), max_output_tokens=SHORT))


async def it_answers_several_calls_at_once(backend: Backend, model: str) -> None:
    calls = [make_call(model, user(f"Say the number {number}."), max_output_tokens=SHORT) for number in range(4)]
    answers = await asyncio.gather(*(collect(backend, call) for call in calls))
    assert all(text_of(deltas) for deltas in answers)


async def it_counts_tokens(backend: Backend, model: str) -> None:
    short, exact = await backend.count_tokens(make_call(model, user("Hello.")))
    long, _ = await backend.count_tokens(make_call(model, user("Hello, and now many more words. " * 50)))
    assert 0 < short < long
    deltas = await collect(backend, make_call(model, user("Hello."), max_output_tokens=SHORT))
    assert isinstance(deltas[-1], Finished)
    usage = deltas[-1].usage
    if usage is not None and not usage.estimated:
        assert short >= usage.input * 0.5 if exact else short >= usage.input, "an estimate that is too low"


CASES: Final[tuple[Case, ...]] = (
    it_lists_the_model,
    it_answers_in_batches_that_end_in_finished,
    it_answers_without_streaming,
    it_says_what_an_answer_used,
    it_stops_at_the_token_limit,
    it_goes_on_with_a_growing_context,
    it_takes_instructions_and_every_role,
    it_calls_a_function_that_it_must_call,
    it_calls_nothing_when_it_must_not,
    it_reads_calls_and_their_results,
    it_reads_histories_that_are_out_of_order,
    it_keeps_to_a_json_schema,
    it_goes_on_from_a_prefill_when_it_says_so,
    it_stops_when_the_iterator_is_closed,
    it_stops_when_the_task_is_cancelled,
    it_answers_several_calls_at_once,
    it_counts_tokens,
)
