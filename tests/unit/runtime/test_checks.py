"""Structured output: what fits, what does not, and schemas that mean harm."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stateroom.agent.state import RunState
from stateroom.errors import BackendFailed, InvalidRequest
from stateroom.journal.entries import ItemFinished, RunSettings, RunStarted
from stateroom.runtime.checks import check_format, check_output
from stateroom.runtime.schema_check import problem_of, states_of, weight_of
from tests.unit.runtime.stage import Stage, says


def settings_of(schema: Any, **more: Any) -> RunSettings:
    return RunSettings(model="m", text={"format": {"type": "json_schema", "name": "n", "schema": schema, **more}})


def answered(text: str) -> RunState:
    state = RunState(0, RunStarted("resp_x", RunSettings(), []), 0)
    state.apply(ItemFinished(0, {"role": "assistant", "content": text}, "stop"), 0)
    return state


def doubling(levels: int) -> dict[str, Any]:
    """A few lines that ask for 2 to the power of `levels` checks."""
    twice = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(levels)}
    return {"$ref": "#/$defs/a0", "$defs": {**twice, f"a{levels}": {"type": "integer"}}}


TREE = {
    "type": "object",
    "properties": {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["value"],
}


@pytest.fixture
def asked_of_server() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"type": "string"}')

        def log_message(self, *_: Any) -> None:
            return None

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_a_schema_never_makes_the_server_open_a_url(asked_of_server: tuple[str, list[str]]) -> None:
    url, asked = asked_of_server
    for schema in (
        {"$ref": f"{url}/a"},
        {"$schema": f"{url}/b"},
        {"$id": f"{url}/c", "$ref": "d"},
        {"allOf": [{"$ref": f"{url}/e"}]},
    ):
        with pytest.raises(InvalidRequest) as refused:
            check_format(settings_of(schema))
        assert refused.value.code == "invalid_json_schema"
    assert asked == []


def test_a_schema_never_makes_the_server_read_a_file(tmp_path: Path) -> None:
    secret = tmp_path / "schema.json"
    secret.write_text('{"const": "secret"}')
    with pytest.raises(InvalidRequest) as refused:
        check_format(settings_of({"$ref": f"file://{secret}"}))
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"$ref": "#/nowhere"},
        {"pattern": "("},
        doubling(40),
        {"$ref": "#/$defs/a0", "$defs": {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(20_000)}},
        {"enum": list(range(30_000))},
        {"anyOf": [{"pattern": f"^(a|b){{{n}}}$"} for n in range(500)]},
        {"minimum": "many"},
    ],
)
def test_a_schema_that_is_none_or_too_much_is_refused_quickly(schema: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_format(settings_of(schema))
    assert refused.value.code == "invalid_json_schema"
    assert len(refused.value.message) < 500


def test_weighing_counts_a_definition_wherever_it_is_referred_to() -> None:
    assert weight_of(doubling(40)).parts > 2**40
    assert not weight_of(doubling(3)).recursive
    assert weight_of(TREE).recursive
    assert weight_of({"$dynamicRef": "#x"}).recursive
    assert weight_of({"$ref": "#named"}).recursive
    assert weight_of({"items": {"$ref": "#/properties/a~1b/0"}, "properties": {"a/b": [{"type": "string"}]}}).parts < 20


async def test_an_answer_that_fits_passes_and_one_that_does_not_says_where() -> None:
    settings = settings_of({"type": "object", "properties": {"n": {"type": "array", "items": {"type": "integer"}}}})
    await check_output(settings, answered('{"n": [1, 2]}'))
    with pytest.raises(BackendFailed) as refused:
        await check_output(settings, answered('{"n": [1, "two"]}'))
    assert refused.value.code == "invalid_output"
    assert "/n/1" in refused.value.message


async def test_a_long_answer_that_is_wrong_everywhere_is_refused_at_its_first_mistake() -> None:
    settings = settings_of({"type": "array", "items": {"type": "string"}})
    began = time.process_time()
    with pytest.raises(BackendFailed) as refused:
        await check_output(settings, answered(json.dumps([1] * 200_000)))
    assert time.process_time() - began < 1.0
    assert len(refused.value.message) < 500


@pytest.mark.parametrize("text", ["", "{", "NaN", "[" * 5_000, '{"a": 1e999}', '"\\ud800"'])
async def test_answers_that_are_no_json_or_strange_json_fail_with_a_code(text: str) -> None:
    with pytest.raises(BackendFailed) as refused:
        await check_output(settings_of({"type": "array"}), answered(text))
    assert refused.value.code == "invalid_output"


async def test_advice_is_not_checked_beyond_being_json() -> None:
    settings = settings_of({"type": "array"}, strict=False)
    await check_output(settings, answered("{}"))
    with pytest.raises(BackendFailed):
        await check_output(settings, answered("no"))
    with pytest.raises(BackendFailed):
        await check_output(RunSettings(text={"format": {"type": "json_object"}}), answered("[]"))


async def test_a_recursive_schema_is_checked_by_a_process_of_its_own() -> None:
    check_format(settings_of(TREE))
    await check_output(settings_of(TREE), answered('{"value": 1, "children": [{"value": 2}]}'))
    with pytest.raises(BackendFailed) as refused:
        await check_output(settings_of(TREE), answered('{"value": 1, "children": [{"value": "two"}]}'))
    assert "/children/0/value" in refused.value.message


async def test_a_check_that_would_take_for_ever_is_given_up_and_the_loop_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stateroom.runtime.checks.CHECK_SECONDS", 0.7)
    branching = {"allOf": [{"properties": {"x": {"$ref": "#"}}}, {"properties": {"x": {"$ref": "#"}}}]}
    check_format(settings_of(branching))
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.ensure_future(tick())
    with pytest.raises(BackendFailed) as refused:
        await check_output(settings_of(branching), answered('{"x":' * 60 + "1" + "}" * 60))
    ticking.cancel()
    assert refused.value.code == "invalid_output"
    assert ticks > 20


def test_a_value_that_is_no_json_is_a_problem_and_no_exception() -> None:
    assert "nan" not in problem_of({"type": "string"}, float("nan"))
    assert problem_of({"type": "string"}, "\ud800") != ""
    assert problem_of({"type": "string"}, "fine") == ""


async def test_a_run_whose_answer_breaks_its_format_has_failed() -> None:
    stage = Stage(says('{"a": ', "2}"), says('{"a": 1}'))
    format_ = {"format": {"type": "json_schema", "name": "n", "schema": {"properties": {"a": {"const": 1}}}}}
    for status in ("failed", "completed"):
        run = await stage.ask(text=format_)
        assert run.state.ended is not None
        assert run.state.ended.status == status


def nested(levels: int) -> dict[str, Any]:
    """With each level the work doubles, and nothing refers to anything."""
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(levels):
        schema = {"allOf": [schema], "unevaluatedProperties": False, "properties": {"a": {}}}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        nested(20),
        {"type": "string", "pattern": r"^(?=(a+)+$)b"},
        {"type": "string", "pattern": r"^(a*)*\1b$"},
        {"patternProperties": {r"(?<!a)b": {}}},
    ],
    ids=["unevaluated", "lookahead", "backreference", "lookbehind"],
)
def test_what_could_take_for_ever_is_not_checked_in_this_process(schema: Any) -> None:
    assert weight_of(schema).recursive


@pytest.mark.parametrize(
    "patterns",
    [
        [rf"[\w\W]{{50{n:02d}}}" for n in range(9)],
        ["|".join(f"a{n}" for n in range(20_000))],
        [r"((\w\W){100}){100}"],
        [rf"(\p{{L}}\p{{N}}){{{n}}}" for n in range(60, 99)],
        ["a" * 19_000] * 500,
    ],
    ids=["classes", "alternatives", "nested", "Unicode", "long"],
)
def test_patterns_that_take_long_to_read_are_refused_unread(patterns: list[str]) -> None:
    schema = {"allOf": [{"type": "string", "pattern": pattern} for pattern in patterns]}
    with pytest.raises(InvalidRequest) as refused:
        check_format(settings_of(schema))
    assert refused.value.code == "invalid_json_schema"
    assert "parts" in refused.value.message


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
        r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$",
        r"^.{1,4000}$",
        r"^\p{Lu}\p{L}{0,60}$",
        r"^(https?://)?([a-z0-9-]{1,63}\.){1,8}[a-z]{2,24}(/\S{0,2000})?$",
    ],
)
def test_patterns_of_everyday_are_taken(pattern: str) -> None:
    check_format(settings_of({"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}))
    assert not weight_of({"pattern": pattern}).recursive


@pytest.mark.parametrize("answer", ["NaN", '{"a": Infinity}', '{"a": [-Infinity]}'])
async def test_numbers_that_json_lacks_are_no_answer(answer: str) -> None:
    for settings in (settings_of({}), RunSettings(text={"format": {"type": "json_object"}})):
        with pytest.raises(BackendFailed) as failed:
            await check_output(settings, answered(answer))
        assert failed.value.code == "invalid_output"


def test_definitions_that_double_at_every_one_are_weighed_in_little_time_and_memory() -> None:
    links = {f"d{n}": {"allOf": 2 * [{"$ref": f"#/$defs/d{n - 1}"}]} for n in range(1, 20_000)}
    schema = {"$defs": {"d0": {}, **links}}
    began = time.process_time()
    parts = weight_of(schema).parts
    assert time.process_time() - began < 5.0
    assert parts > 2**40
    assert parts.bit_length() < 100


@pytest.mark.parametrize("pattern", ["{" + "1" * 60_000, "{1," + "1" * 60_000, "[" * 60_000, "\\p{" * 20_000])
def test_weighing_a_pattern_takes_no_longer_than_reading_it(pattern: str) -> None:
    began = time.process_time()
    assert states_of(pattern) > 0
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize(
    "patterns",
    [
        [rf"(?x)[\p{{L}}]{{ 3{n:02d} }}" for n in range(99)],
        [rf"(?i-u:a)(?ix:\w{{9 000}}){n}" for n in range(99)],
        [r"\w\W" * 100 + str(n) for n in range(60)],
    ],
    ids=["verbose", "verbose group", "written out"],
)
def test_patterns_that_hide_how_long_they_take_are_refused_unread(patterns: list[str]) -> None:
    began = time.process_time()
    with pytest.raises(InvalidRequest) as refused:
        check_format(settings_of({"allOf": [{"pattern": pattern} for pattern in patterns]}))
    assert "parts" in refused.value.message
    assert time.process_time() - began < 2.0
