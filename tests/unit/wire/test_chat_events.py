"""The chunks of a chat completion say what the whole answer says, whatever order things come in."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from pydantic import TypeAdapter

from stateroom.agent.assembler import Assembler, CallShape
from stateroom.journal.entries import Frame, Item, OpenItem, OutputItem, RunSettings, RunView, Usage
from stateroom.wire.chat_completions import ChatStyle, message_object
from stateroom.wire.chat_events import ERROR_HEAD, ChatRenderer, render_usage_chunk

CHUNK: TypeAdapter[Any] = TypeAdapter(ChatCompletionChunk)
KEY = "0" * 26


def view(status: str = "in_progress", *, stored: bool = False, style: ChatStyle | None = None, **more: Any) -> RunView:
    settings = RunSettings(model="m", echo=(style or ChatStyle()).written_to({}))
    return RunView(f"resp_{KEY}", 1_700_000_000_123, settings, status, stored=stored, **more)


def shape_of(name: str) -> CallShape | None:
    if name == "w":
        return CallShape(
            lambda call_id, text: {"type": "custom_tool_call", "call_id": call_id, "name": name, "input": text},
            streams=False,
        )
    return CallShape(
        lambda call_id, text: {"type": "function_call", "call_id": call_id, "name": name, "arguments": text}
    )


class Answer:
    """An answer that is assembled and rendered at once."""

    def __init__(self, started: RunView, **options: Any) -> None:
        self.renderer = ChatRenderer(started, **options)
        self.assembler = Assembler(KEY, 0, shape_of=shape_of, listener=self.renderer)
        self.frames: list[Frame] = []
        self.items: list[OutputItem] = []
        self.renderer.begin(started)

    def take(self) -> None:
        if (frame := self.renderer.take()) is not None:
            self.frames.append(frame)
        self.items += [OutputItem(each.index, f"id{each.index}", each.item) for each in self.assembler.take()]

    def end(self, finished: RunView) -> None:
        self.assembler.end("stop", None)
        self.take()
        ended = msgspec.structs.replace(finished, output=tuple(sorted(self.items, key=lambda held: held.index)))
        self.renderer.end(ended)
        self.take()

    @property
    def body(self) -> bytes:
        return b"".join(frame.body for frame in self.frames)

    def chunks(self) -> list[dict[str, Any]]:
        blocks = [block for block in self.body.split(b"\n\n") if block and not block.startswith(b":")]
        return [msgspec.json.decode(block.removeprefix(b"data: ")) for block in blocks]


def gathered(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a client makes of the chunks."""
    message: dict[str, Any] = {"content": "", "refusal": "", "reasoning_content": "", "tool_calls": {}}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for name in ("content", "refusal", "reasoning_content"):
                message[name] += delta.get(name) or ""
            for piece in delta.get("tool_calls", ()):
                call = message["tool_calls"].setdefault(piece["index"], {})
                for name, value in piece.items():
                    if isinstance(value, dict) and isinstance(call.get(name), dict):
                        for inner, text in value.items():
                            call[name][inner] = call[name].get(inner, "") + text
                    else:
                        call[name] = value
    return message


steps = st.lists(
    st.one_of(
        st.tuples(st.just("text"), st.text(max_size=3)),
        st.tuples(st.just("refuse"), st.text(max_size=3)),
        st.tuples(st.just("reason"), st.text(min_size=1, max_size=3)),
        st.tuples(
            st.just("call"), st.integers(0, 2), st.sampled_from(("f", "g", "w")), st.sampled_from(("", "{", "}"))
        ),
        st.tuples(st.just("take")),
    ),
    max_size=20,
)


def play(answer: Answer, played: list[Any]) -> None:
    for step in played:
        match step:
            case ("text", text):
                answer.assembler.text(text)
            case ("refuse", text):
                answer.assembler.refuse(text)
            case ("reason", text):
                answer.assembler.reason(text)
            case ("call", key, name, arguments):
                extra = {"signature": "s"} if arguments == "{" else None
                answer.assembler.call(key, f"c{key}", name, arguments, extra)
            case _:
                answer.take()


@given(steps)
def test_the_chunks_add_up_to_the_whole_message(played: list[Any]) -> None:
    answer = Answer(view(stored=True))
    play(answer, played)
    answer.end(view("completed"))
    chunks = answer.chunks()
    whole = message_object([held.item for held in sorted(answer.items, key=lambda held: held.index)])
    made = gathered(chunks)
    assert made["content"] == (whole["content"] or "")
    assert made["refusal"] == (whole["refusal"] or "")
    assert made["reasoning_content"] == whole.get("reasoning_content", "").replace("\n\n", "")
    calls = [{name: value for name, value in call.items() if name != "index"} for call in made["tool_calls"].values()]
    assert calls == whole.get("tool_calls", [])
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    reasons = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    assert reasons[-1] == ("tool_calls" if calls else "stop")
    numbers = [number for frame in answer.frames for number in (frame.first, frame.last)]
    assert numbers[0] == 0
    assert numbers == sorted(numbers)
    assert [later.first - earlier.last for earlier, later in itertools.pairwise(answer.frames)] == [1] * (
        len(answer.frames) - 1
    )


@given(steps)
def test_what_was_open_is_found_again_in_the_frames_of_a_stored_stream(played: list[Any]) -> None:
    answer = Answer(view(stored=True))
    play(answer, [*played, ("reason", "hm")])  # a mark goes out with the chunk behind it
    answer.take()
    renderer, opened = ChatRenderer.restore(view(stored=True, output=tuple(answer.items)), answer.frames)
    finished = {held.index for held in answer.items}
    flow = answer.assembler._flow
    expected: dict[int, OpenItem] = {}
    if flow is not None:
        expected[flow.index] = OpenItem(flow.index, flow.kind, "".join(flow.pieces))
    for call in answer.assembler._calls.values():
        if call is not None and call.shape is not None:
            item: Item = call.shape.build("c", "")
            text = "".join(call.pieces) if call.shape.streams else ""
            expected[call.index] = OpenItem(call.index, item["type"], text)
    assert {item.index: item for item in opened} == {n: item for n, item in expected.items() if n not in finished}
    renderer.begin(view())
    renderer.end(view("completed"))
    assert renderer.take() is None


def test_only_stored_streams_say_which_item_begins() -> None:
    for stored in (True, False):
        answer = Answer(view(stored=stored))
        answer.assembler.text("hi")
        answer.end(view("completed"))
        assert (b": item 0 message\n\n" in answer.body) is stored


@pytest.mark.parametrize("style", [ChatStyle(), ChatStyle(usage=True), ChatStyle(choice=2, id="chatcmpl-x", created=5)])
def test_every_chunk_is_one(style: ChatStyle) -> None:
    answer = Answer(view(style=style), obfuscate=True)
    play(answer, [("reason", "a"), ("text", "b\u2028"), ("call", 0, "f", "{}")])
    answer.end(view("completed", style=style, usage=Usage(3, 4)))
    assert "\u2028" not in answer.body.decode()
    for chunk in answer.chunks():
        CHUNK.validate_json(msgspec.json.encode(chunk), strict=True)
        assert chunk["id"] == (style.id or f"chatcmpl-{KEY}")
        assert chunk["created"] == (style.created or 1_700_000_000)
        assert all(choice["index"] == style.choice and choice["delta"] is not None for choice in chunk["choices"])
        assert ("obfuscation" in chunk) == bool(chunk["choices"])
    last = answer.chunks()[-1]
    assert (last.get("usage") is not None) is style.usage
    assert (last["choices"] == []) is style.usage


def test_summaries_of_reasoning_are_told_as_reasoning() -> None:
    answer = Answer(view())
    answer.renderer.item_opened(0, "rs", {"type": "reasoning", "summary": []})
    for part, text in ((0, "a"), (0, "b"), (1, "c")):
        answer.renderer.summary(0, part, text)
    answer.take()
    assert gathered(answer.chunks())["reasoning_content"] == "ab\n\nc"


def test_a_failure_is_told_and_ends_the_stream() -> None:
    answer = Answer(view())
    error = {"code": "invalid_output", "message": "not as `text.format` demands", "type": "server_error", "status": 502}
    answer.renderer.end(view("failed", error=error))
    answer.take()
    assert answer.body.startswith(ERROR_HEAD)
    assert answer.chunks() == [
        {
            "error": {
                "message": "not as `response_format` demands",
                "type": "server_error",
                "param": None,
                "code": "invalid_output",
            }
        }
    ]


def test_an_empty_answer_still_says_who_spoke() -> None:
    answer = Answer(view())
    answer.end(view("completed"))
    assert [chunk["choices"][0]["delta"] for chunk in answer.chunks()] == [{"role": "assistant", "content": ""}, {}]


def test_the_usage_of_several_choices_is_one_chunk() -> None:
    body = render_usage_chunk(view(style=ChatStyle(id="chatcmpl-x")), [Usage(3, 4), Usage(3, 5)])
    chunk = CHUNK.validate_json(body.removeprefix(b"data: "), strict=True)
    assert (chunk.choices, chunk.usage.prompt_tokens, chunk.usage.completion_tokens) == ([], 3, 9)
