"""Tool calls by schema-forced output: what the model is asked, and what is made of its reply."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from stateroom.errors import BackendFailed, BackendTimeout, InvalidRequest
from stateroom.journal.entries import Usage
from stateroom.models.backend import ContextItem, Delta, Finished, FunctionSpec, ReasoningDelta, TextDelta
from stateroom.models.chat_request import Dialect, encode_request
from stateroom.models.emulation import ToolEmulation
from stateroom.models.grammar_schema import Bounds
from stateroom.testing.backend_conformance import calls_of, collect, make_call, text_of, user
from stateroom.testing.fake_backend import FakeBackend, spoken

WEATHER = FunctionSpec(
    "get_weather",
    "The weather\n at a place.",
    {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]},
)
CLOCK = FunctionSpec("get_time")
BOTH = (WEATHER, CLOCK)
CALL = '{"tool": "get_weather", "arguments": {"city": "Oslo"}}'


def emulated(*pieces: str, reason: str = "stop") -> tuple[ToolEmulation, FakeBackend]:
    inner = FakeBackend(spoken(*pieces, reason=reason))
    return ToolEmulation(inner), inner


def ends(deltas: Sequence[Delta]) -> str:
    assert isinstance(deltas[-1], Finished)
    return deltas[-1].reason


async def test_a_forced_call_becomes_a_call() -> None:
    backend, inner = emulated('{"tool": "get_wea', 'ther", "arguments": {"city"', ': "Oslo"}}')
    deltas = await collect(backend, make_call("m", user("Weather?"), functions=BOTH, tool_choice="required"))
    ((call_id, name, arguments),) = calls_of(deltas)
    assert call_id.startswith("call_")
    assert (name, arguments) == ("get_weather", '{"city":"Oslo"}')
    assert text_of(deltas) == ""
    assert ends(deltas) == "stop"
    assert inner.calls[0].functions == ()


async def test_two_calls_have_two_ids() -> None:
    backend = ToolEmulation(FakeBackend(spoken(CALL), spoken(CALL)))
    call = make_call("m", user("Weather?"), functions=BOTH)
    ids = {calls_of(await collect(backend, call))[0][0] for _ in range(2)}
    assert len(ids) == 2


async def test_an_answer_is_given_out_while_it_comes() -> None:
    pieces = ['{"ans', 'wer": ', '"It is \\', "u00e9", "t\\", "n", "\\ud83d", "\\ude00 \\", '"ok', '\\"!"', "}"]
    backend, _ = emulated(*pieces)
    batches = [batch async for batch in backend.generate(make_call("m", user("Hi."), functions=BOTH))]
    texts = [delta.text for batch in batches for delta in batch if isinstance(delta, TextDelta)]
    assert "".join(texts) == 'It is ét\n😀 "ok"!'
    assert texts[0] == "It is "
    assert len(texts) > 4


async def test_the_schema_offers_every_tool_and_with_auto_an_answer() -> None:
    backend, inner = emulated('{"answer": ""}')
    await collect(backend, make_call("m", user("Hi."), functions=BOTH))
    schema = inner.calls[0].format["schema"]  # type: ignore[index]  # a format was forced
    for good in (
        {"tool": "get_weather", "arguments": {"city": "Oslo", "days": 2}},
        {"tool": "get_time", "arguments": {}},
        {"answer": "Hello."},
    ):
        jsonschema_rs.validate(schema, good)
    for bad in (
        {"tool": "get_weather", "arguments": {}},
        {"tool": "other", "arguments": {}},
        {"tool": "get_time", "arguments": {"zone": "x"}},
        {"answer": 1},
        {"answer": "Hello.", "tool": "get_time"},
        {},
    ):
        assert not jsonschema_rs.is_valid(schema, bad), bad


@pytest.mark.parametrize(
    ("choice", "names"), [("required", {"get_weather", "get_time"}), (("get_time",), {"get_time"})]
)
async def test_a_call_that_must_be_made_leaves_no_way_to_answer(choice: Any, names: set[str]) -> None:
    backend, inner = emulated('{"tool": "get_time", "arguments": {}}')
    await collect(backend, make_call("m", user("Hi."), functions=BOTH, tool_choice=choice))
    schema = inner.calls[0].format["schema"]  # type: ignore[index]  # a format was forced
    assert not jsonschema_rs.is_valid(schema, {"answer": "no"})
    assert {
        name
        for name in ("get_weather", "get_time")
        if jsonschema_rs.is_valid(schema, {"tool": name, "arguments": {"city": "x"} if name == "get_weather" else {}})
    } == names
    assert "answer" not in (inner.calls[0].instructions or "")


async def test_the_model_is_told_of_its_tools_in_few_words() -> None:
    backend, inner = emulated('{"answer": ""}')
    await collect(backend, make_call("m", user("Hi."), functions=BOTH, instructions="Be kind."))
    told = inner.calls[0].instructions or ""
    assert told.startswith("Be kind.\n\n")
    assert "- get_weather: The weather at a place.\n  arguments: {" in told
    assert '{"city": string, "days"?: integer}' in told
    assert '{"answer": text}' in told


async def test_a_choice_of_tools_that_are_not_there_is_refused() -> None:
    backend, inner = emulated()
    with pytest.raises(InvalidRequest) as refused:
        await collect(backend, make_call("m", user("Hi."), functions=BOTH, tool_choice=("other",)))
    assert refused.value.param == "tool_choice"
    assert inner.calls == []


async def test_a_choice_that_cannot_be_called_any_more_still_flattens_the_history() -> None:
    backend, inner = emulated("Plain.")
    format = {"type": "json_object"}
    items = (user("Hi."), {"type": "function_call", "call_id": "c1", "name": "get_time", "arguments": "{}"})
    call = make_call("m", *items, functions=BOTH, tool_choice="none", format=format, instructions="Be kind.")
    assert text_of(await collect(backend, call)) == "Plain."
    asked = inner.calls[0]
    assert (asked.instructions, asked.format, asked.functions) == ("Be kind.", format, ())
    assert [held.item.get("role") for held in asked.items] == ["user", "assistant"]


async def test_calls_and_results_are_told_as_messages() -> None:
    backend, inner = emulated('{"answer": ""}')
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    items = (
        user("Hi."),
        {"type": "function_call", "call_id": "c1", "name": "look", "namespace": "files", "arguments": '{"at":1}'},
        {"type": "function_call_output", "call_id": "c1", "output": "found"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "run", "input": "ls"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "a"}, picture]},
        {"type": "function_call_output", "call_id": "gone", "output": ""},
        {"type": "mcp_call", "name": "search", "arguments": "{}", "output": "hit"},
        {"type": "reasoning", "summary": []},
    )
    await collect(backend, make_call("m", *items, functions=BOTH))
    asked = [held.item for held in inner.calls[0].items]
    assert not [item for item in asked if "call" in str(item.get("type"))]
    messages = msgspec.json.decode(encode_request(inner.calls[0], Dialect()))["messages"][1:]
    assert [(message["role"], message["content"]) for message in messages] == [
        ("user", "Hi."),
        ("assistant", 'Called files__look({"at":1})'),
        ("user", "Result of files__look: found"),
        ("assistant", "Called run(ls)"),
        (
            "user",
            [
                {"type": "text", "text": "Result of run:"},
                {"type": "text", "text": "a"},
                {"type": "image_url", "image_url": {"url": picture["image_url"]}},
            ],
        ),
        ("user", "Result of gone: "),
        ("assistant", "Called search({})"),
        ("user", "Result of search: hit"),
    ]


async def test_a_growing_context_is_flattened_once() -> None:
    inner = FakeBackend(spoken('{"answer": "a"}'), spoken('{"answer": "b"}'), spoken('{"answer": "c"}'))
    backend = ToolEmulation(inner)
    call = make_call("m", user("Hi."), functions=BOTH)
    await collect(backend, call)
    items = [
        *call.items,
        ContextItem("item_1", {"type": "function_call", "call_id": "c1", "name": "get_time", "arguments": "{}"}),
        ContextItem("item_2", {"type": "function_call_output", "call_id": "c1", "output": "noon"}),
    ]
    await collect(backend, msgspec.structs.replace(call, items=items))
    first, second = inner.calls
    assert second.items is first.items
    assert second.cache is first.cache
    assert second.cache is not call.cache
    assert second.format is first.format
    assert len(second.items) == 3

    other = [ContextItem("else", user("Another context."))]
    await collect(backend, msgspec.structs.replace(call, items=other))
    assert [held.id for held in inner.calls[2].items] == ["else"]


async def test_an_answer_that_has_begun_goes_on_as_text() -> None:
    backend, inner = emulated(" and on")
    call = make_call("m", user("Hi."), functions=BOTH, prefill="On", instructions="Be kind.")
    assert text_of(await collect(backend, call)) == " and on"
    assert (inner.calls[0].prefill, inner.calls[0].format, inner.calls[0].instructions) == ("On", None, "Be kind.")


async def test_an_answer_in_a_format_is_given_out_as_the_json_it_is() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    value = '{"a": "} \\" ]", "b": [1, {"c": "\\\\"}]}'
    format = {"type": "json_schema", "name": "x", "schema": schema}
    backend, inner = emulated(*f'{{"answer": {value}}}')
    assert text_of(await collect(backend, make_call("m", user("Hi."), functions=BOTH, format=format))) == value
    forced = inner.calls[0].format["schema"]  # type: ignore[index]  # a format was forced
    assert jsonschema_rs.is_valid(forced, {"answer": {"a": "x"}})
    assert not jsonschema_rs.is_valid(forced, {"answer": "text"})


async def test_a_call_that_was_cut_off_is_dropped() -> None:
    backend, _ = emulated('{"tool": "get_weather", "arguments": {"city": "Os', reason="length")
    deltas = await collect(backend, make_call("m", user("Weather?"), functions=BOTH, tool_choice="required"))
    assert calls_of(deltas) == []
    assert ends(deltas) == "length"


async def test_an_answer_that_was_cut_off_keeps_what_there_is() -> None:
    backend, _ = emulated('{"answer": "Once upon\\u', reason="length")
    deltas = await collect(backend, make_call("m", user("Hi."), functions=BOTH))
    assert (text_of(deltas), ends(deltas)) == ("Once upon", "length")


@pytest.mark.parametrize("reply", ["Just text.", "", "   ", '{"weather": "fine"}', "[1]", '{"answer": 5}', "{"])
async def test_a_server_without_structured_output_may_answer_as_it_likes(reply: str) -> None:
    backend, _ = emulated(*reply)
    call = make_call("m", user("Hi."), functions=BOTH)
    if reply == "{":
        with pytest.raises(BackendFailed):
            await collect(backend, call)
    else:
        assert text_of(await collect(backend, call)).strip() == reply.strip()


async def test_a_call_in_a_fence_is_found() -> None:
    backend, _ = emulated(*f"```json\n{CALL}\n```")
    assert calls_of(await collect(backend, make_call("m", user("Hi."), functions=BOTH)))[0][1] == "get_weather"


@pytest.mark.parametrize(
    "reply", ["Just text.", '{"tool": "other", "arguments": {}}', '{"tool": "get_time", "arguments": 1}']
)
async def test_a_call_that_must_be_made_and_cannot_be_read_is_an_error(reply: str) -> None:
    backend, _ = emulated(*reply)
    with pytest.raises(BackendFailed) as failed:
        await collect(backend, make_call("m", user("Hi."), functions=BOTH, tool_choice="required"))
    assert failed.value.code == "tool_call_unreadable"


async def test_reasoning_usage_and_reasons_pass_through() -> None:
    usage = Usage(input=3, output=4)
    batches: list[Sequence[Delta]] = [[ReasoningDelta("hm")], [TextDelta(CALL), Finished("content_filter", usage)]]
    deltas = await collect(ToolEmulation(FakeBackend(batches)), make_call("m", user("Hi."), functions=BOTH))
    assert deltas[0] == ReasoningDelta("hm")
    assert deltas[-1] == Finished("stop", usage)

    cut: list[Sequence[Delta]] = [[TextDelta('{"answer": "x'), Finished("content_filter", usage)]]
    deltas = await collect(ToolEmulation(FakeBackend(cut)), make_call("m", user("Hi."), functions=BOTH))
    assert deltas[-1] == Finished("content_filter", usage)


async def test_errors_pass_through() -> None:
    backend = ToolEmulation(FakeBackend([[TextDelta('{"answer": "x')], BackendTimeout("slow")]))
    with pytest.raises(BackendTimeout):
        await collect(backend, make_call("m", user("Hi."), functions=BOTH))


@pytest.mark.parametrize("functions", [(), BOTH])
async def test_closing_the_answer_closes_the_one_inside(functions: tuple[FunctionSpec, ...]) -> None:
    backend, inner = emulated('{"answer": "a', "b", "c")
    async with contextlib.aclosing(backend.generate(make_call("m", user("Hi."), functions=functions))) as batches:
        await anext(batches)
    assert inner.cut_off == 1


async def test_tokens_are_counted_with_the_tools() -> None:
    backend, inner = emulated()
    assert await backend.count_tokens(make_call("m", user("Hi."), functions=BOTH)) == (7, True)
    assert "get_weather" in (inner.calls[0].instructions or "")


async def test_bounds_are_put_on_what_a_tool_leaves_open() -> None:
    inner = FakeBackend(spoken(CALL))
    await collect(
        ToolEmulation(inner, Bounds(text=5)), make_call("m", user("Hi."), functions=BOTH, tool_choice="required")
    )
    schema = inner.calls[0].format["schema"]  # type: ignore[index]  # a format was forced
    assert jsonschema_rs.is_valid(schema, {"tool": "get_weather", "arguments": {"city": "Paris"}})
    assert not jsonschema_rs.is_valid(schema, {"tool": "get_weather", "arguments": {"city": "London"}})


async def test_it_is_what_it_wraps() -> None:
    backend, inner = emulated()
    assert (backend.name, backend.can_prefill) == ("fake", True)
    assert ToolEmulation(FakeBackend(can_prefill=False)).can_prefill is False
    assert [model.id for model in await backend.models()] == ["fake"]
    await backend.close()
    assert inner.closed
