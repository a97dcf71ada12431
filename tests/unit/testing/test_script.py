from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from stateroom.testing.script import CONTROL_WORDS, Call, ChatRequest, Message, Reply, Script, instance, numbered, obey
from stateroom.testing.script_dialect import Answer, Quirks


def reply(*texts: str, **options: Any) -> Reply:
    return obey(ChatRequest(messages=[Message("user", text) for text in texts], **options))


def test_say_answers_with_its_text_over_several_lines() -> None:
    assert reply("say: one\ntwo\n\nthree").text == "one\ntwo\n\nthree"


def test_reason_and_refuse_come_with_or_in_place_of_the_text() -> None:
    assert (reply("reason: hm\nsay: x").reasoning, reply("reason: hm\nsay: x").text) == ("hm", "x")
    assert (reply("refuse: no").refusal, reply("refuse: no").text) == ("no", "")


def test_call_lines_are_turns_of_one_call_each_and_end_in_the_text() -> None:
    asked = Message("user", 'call: a {"x": 1}\ncall: b\nsay: done')
    turn = [Message("assistant", None, [{}]), Message("tool", "result")]
    assert obey(ChatRequest([asked])).calls == (Call("a", '{"x": 1}'),)
    assert obey(ChatRequest([asked, *turn])).calls == (Call("b"),)
    last = obey(ChatRequest([asked, *turn, *turn]))
    assert (last.calls, last.text) == ((), "done")


def test_calls_are_several_at_once_and_their_results_are_told() -> None:
    asked = Message("user", 'calls: [{"name": "a", "arguments": {"x": 1}}, {"name": "b"}]')
    assert obey(ChatRequest([asked])).calls == (Call("a", '{"x":1}'), Call("b"))
    after = [Message("assistant", None, [{}, {}]), Message("tool", "one"), Message("tool", "two")]
    assert obey(ChatRequest([asked, *after])).text == "The tool answered: one; two"


def test_loop_calls_after_every_result() -> None:
    turn = [Message("assistant", None, [{}]), Message("tool", "x")]
    assert obey(ChatRequest([Message("user", "loop: a"), *turn * 5])).calls == (Call("a"),)


def test_disturbances_are_read() -> None:
    assert (reply("fail: 503 Loading").status, reply("fail:503 Loading").error) == (
        503,
        {"message": "Loading", "type": "scripted", "code": None},
    )
    assert reply("fail_after: 10\nchunks: 20").drop_after == 10
    assert reply("hang").hang_after == 0
    assert reply("hang: 3").hang_after == 3
    assert reply("slow").delay == 0.2
    assert reply("slow: 50\nsay: x").delay == 0.05
    assert reply("length\nsay: x").finish == "length"
    assert reply("chunks: 3").text == "w0 w1 w2"


def test_fail_after_happens_only_in_answers_that_were_not_begun_for_it() -> None:
    request = ChatRequest([Message("user", "fail_after: 2\nchunks: 9"), Message("assistant", "w0 w1")])
    assert obey(request).drop_after is None


def test_it_remembers_facts() -> None:
    assert reply("My name is Ada, hello", "my dog's name is Rex", "What is my name?").text == "Your name is Ada."
    assert reply("hi", "what is my name?").text == "I do not know your name."
    assert "colour is blue" in reply("my colour is blue", "remember").text


def test_it_echoes() -> None:
    assert reply("a", "echo").text == "2 messages. echo"
    assert reply("a", "well").text == "You said: well"


TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}


def test_a_tool_is_called_when_it_must_be_or_is_spoken_of() -> None:
    assert reply("hm", tools=[TOOL]).calls == ()
    assert reply("the weather?", tools=[TOOL]).calls == (Call("get_weather"),)
    assert reply("hm", tools=[TOOL], tool_choice="required").calls == (Call("get_weather"),)
    named = {"type": "function", "function": {"name": "get_weather"}}
    assert reply("hm", tools=[TOOL], tool_choice=named).calls == (Call("get_weather"),)
    assert reply("the weather?", tools=[TOOL], tool_choice="none").calls == ()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"type": "string", "minLength": 9}, "b": {}}, "required": ["a"]},
        {"type": "array", "items": {"type": "integer", "minimum": 5}, "minItems": 2},
        {"anyOf": [{"type": "null"}, {"type": "string"}]},
        {"enum": [3, 4]},
        {"const": {"x": 1}},
        {"$defs": {"n": {"type": ["boolean", "null"]}}, "type": "object", "properties": {"n": {"$ref": "#/$defs/n"}},
         "required": ["n"]},
    ],
)  # fmt: skip
def test_an_instance_fits_its_schema(schema: dict[str, Any]) -> None:
    jsonschema_rs.validate(schema, instance(schema))


def test_an_answer_goes_on_where_a_prefill_ends_and_stops_at_the_token_limit() -> None:
    asked = [Message("user", "chunks: 6"), Message("assistant", "w0 w1 w")]
    answer = Answer(Reply(text=numbered(6)), ChatRequest(asked, max_tokens=3), Quirks(), 1)
    assert (answer.pieces, answer.finish) == (["2", " w3", " w4"], "length")


async def test_a_script_wakes_who_waits_for_it() -> None:
    script = Script()
    waiting = asyncio.create_task(script.until(lambda one: one.dropped == 2))
    await asyncio.sleep(0)
    script.note(dropped=1)
    script.note(dropped=1)
    await waiting
    with pytest.raises(TimeoutError):
        await script.until(lambda one: one.dropped == 3, timeout=0.01)


def test_it_runs_as_a_process_and_keeps_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "stateroom.testing.scripted", "--model", "m1", "--chunks", "3", "--log", str(log)]
    with subprocess.Popen([*command, "--quirk", "usage=none"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening on http://127.0.0.1:")
            body = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
            with urllib.request.urlopen(line.split()[-1] + "/v1/chat/completions", body) as answer:
                held = json.load(answer)
        finally:
            process.terminate()
    assert process.returncode == 0
    assert held["choices"][0]["message"]["content"] == "w0 w1 w2"
    assert "usage" not in held
    assert json.loads(log.read_text().splitlines()[0])["body"]["messages"][0]["content"] == "hello"


def test_every_control_word_is_described() -> None:
    assert all(CONTROL_WORDS.values())
