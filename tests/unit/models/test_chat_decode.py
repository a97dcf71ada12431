from __future__ import annotations

import contextlib
import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stateroom.errors import BackendBusy, BackendError, BackendFailed, BackendRejected
from stateroom.models.backend import Delta, Finished, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta
from stateroom.models.chat_decode import ChatDecoder
from stateroom.models.event_bytes import EVENT_LIMIT
from stateroom.testing.backend_conformance import calls_of, text_of
from stateroom.testing.script import Call, ChatRequest, Message, Reply
from stateroom.testing.script_dialect import Answer, Quirks


def chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def sse(*chunks: Any, end: str = "\n\n") -> bytes:
    """Events of these objects; strings go in as they are."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in chunks]
    return "".join([f"data: {text}{end}" for text in texts]).encode()


def decode(data: bytes, step: int = 0) -> list[Delta]:
    decoder = ChatDecoder(server="The server")
    pieces = [data[i : i + step] for i in range(0, len(data), step)] if step else [data]
    deltas = [delta for piece in pieces for delta in decoder.feed(piece)]
    return deltas + decoder.end()


def stream(*chunks: Any) -> list[Delta]:
    return decode(sse(*chunks, chunk("stop"), "[DONE]"))


def tool(
    index: int | None = 0, call_id: str = "", name: str = "", arguments: Any = None, **more: Any
) -> dict[str, Any]:
    piece: dict[str, Any] = {**more, "function": {}}
    if index is not None:
        piece["index"] = index
    if call_id:
        piece["id"] = call_id
    if name:
        piece["function"]["name"] = name
    if arguments is not None:
        piece["function"]["arguments"] = arguments
    return chunk(tool_calls=[piece])


def merged(deltas: list[Delta]) -> list[Any]:
    """What is said, whatever the pieces."""
    kinds = (TextDelta, RefusalDelta, ReasoningDelta)
    texts = ["".join([delta.text for delta in deltas if isinstance(delta, kind)]) for kind in kinds]
    calls = [(name, arguments) for _, name, arguments in calls_of(deltas)]
    return [*texts, calls, deltas[-1]]


def test_a_plain_stream_is_one_delta_a_chunk() -> None:
    first = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}]}
    deltas = decode(sse(first, chunk(content="Hel"), chunk(content="lo"), chunk("stop"), "[DONE]"))
    assert deltas == [TextDelta("Hel"), TextDelta("lo"), Finished("stop")]


def test_all_events_of_a_read_come_as_one_batch() -> None:
    decoder = ChatDecoder(server="s")
    assert decoder.feed(sse(*[chunk(content=str(i)) for i in range(50)])) == [TextDelta(str(i)) for i in range(50)]
    assert not decoder.done
    assert decoder.feed(sse("[DONE]")) == []
    assert decoder.done


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
def test_an_event_is_given_out_with_its_last_byte(end: str) -> None:
    data = sse(chunk(content="x"), end=end)
    for at in range(1, len(data)):
        decoder = ChatDecoder(server="s")
        assert decoder.feed(data[:at]) == []
        assert decoder.feed(data[at:]) == [TextDelta("x")]


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_is_read_from_each_of_its_names_and_the_name_is_remembered(field: str) -> None:
    decoder = ChatDecoder(server="s")
    assert decoder.feed(sse(chunk(**{field: "hm", "content": ""}))) == [ReasoningDelta("hm")]
    assert decoder.reasoning_field == field


def test_reasoning_under_two_names_at_once_is_read_once() -> None:
    assert stream(chunk(reasoning="hm", reasoning_content="hm"))[:-1] == [ReasoningDelta("hm")]


def test_think_tags_stay_text() -> None:
    assert text_of(stream(chunk(content="<think>x</think>y"))) == "<think>x</think>y"


def test_a_refusal_is_a_refusal() -> None:
    assert stream(chunk(refusal="No."))[:-1] == [RefusalDelta("No.")]


def test_content_may_be_a_list_of_parts() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "yes"},
        {"type": "refusal", "refusal": "no"},
        7,
    ]
    assert stream(chunk(content=parts))[:-1] == [ReasoningDelta("hm"), TextDelta("yes"), RefusalDelta("no")]


def test_a_call_in_pieces_is_put_together() -> None:
    deltas = stream(tool(0, "c1", "look", ""), tool(0, arguments='{"a"'), tool(0, arguments=":1}"))
    assert deltas[0] == ToolCallDelta(0, "c1", "look", "")
    assert calls_of(deltas) == [("c1", "look", '{"a":1}')]


def test_interleaved_calls_are_told_apart_by_index() -> None:
    deltas = stream(
        tool(0, "c1", "f", ""), tool(1, "c2", "g", ""), tool(0, arguments="{"), tool(1, arguments="{"),
        tool(0, arguments="}"), tool(1, arguments=' "b":2}'),
    )  # fmt: skip
    assert calls_of(deltas) == [("c1", "f", "{}"), ("c2", "g", '{ "b":2}')]


def test_a_new_id_on_the_same_index_is_a_new_call() -> None:
    deltas = stream(tool(0, "c1", "f", '{"a":1}'), tool(0, "c2", "f", '{"a":2}'))
    assert calls_of(deltas) == [("c1", "f", '{"a":1}'), ("c2", "f", '{"a":2}')]


def test_a_new_id_is_a_new_call_even_without_arguments() -> None:
    deltas = stream(tool(0, "c1", "now", ""), tool(0, "c2", "now", ""))
    assert calls_of(deltas) == [("c1", "now", "{}"), ("c2", "now", "{}")]


def test_an_id_on_every_piece_is_one_call() -> None:
    deltas = stream(tool(0, "c1", "f", '{"a"'), tool(0, "c1", "f", ":1}"), tool(0, "c1", "f", ""))
    assert calls_of(deltas) == [("c1", "f", '{"a":1}')]


def test_ids_tell_interleaved_calls_apart_when_the_index_is_always_0() -> None:
    begun = [tool(0, "c1", "f", "{"), tool(0, "c2", "g", "{")]
    deltas = stream(*begun, tool(0, "c1", arguments="}"), tool(0, "c2", arguments="}"))
    assert calls_of(deltas) == [("c1", "f", "{}"), ("c2", "g", "{}")]


def test_whole_calls_without_id_or_index_get_ids_and_stay_apart() -> None:
    calls = [{"function": {"name": "f", "arguments": {"a": 1}}}, {"function": {"name": "f", "arguments": {"a": 2}}}]
    [first, second] = calls_of(stream(chunk(tool_calls=calls)))
    assert (first[1:], second[1:]) == (("f", '{"a":1}'), ("f", '{"a":2}'))
    assert first[0].startswith("call_")
    assert first[0] != second[0]


def test_one_id_for_two_calls_is_replaced_in_the_second() -> None:
    [first, second] = calls_of(stream(tool(0, "c1", "f", "{}"), tool(1, "c1", "g", "{}")))
    assert first[0] == "c1"
    assert second[0] != "c1"


def test_a_call_without_arguments_gets_an_empty_object() -> None:
    assert calls_of(stream(tool(0, "c1", "now"))) == [("c1", "now", "{}")]
    assert calls_of(stream(tool(0, "c1", "now", {}))) == [("c1", "now", "{}")]


def test_a_name_that_comes_after_the_id_is_waited_for() -> None:
    deltas = stream(tool(0, "c1"), tool(0, name="f"), tool(0, arguments="{}"))
    assert calls_of(deltas) == [("c1", "f", "{}")]


def test_unknown_fields_of_a_call_are_kept() -> None:
    extra = {"extra_content": {"google": {"thought_signature": "abc"}}}
    deltas = stream(tool(0, "c1", "f", "{}", type="function", **extra))
    assert isinstance(deltas[0], ToolCallDelta)
    assert deltas[0].extra == extra


def test_the_old_function_call_is_a_call() -> None:
    deltas = stream(chunk(function_call={"name": "f", "arguments": "{"}), chunk(function_call={"arguments": "}"}))
    assert [one[1:] for one in calls_of(deltas)] == [("f", "{}")]


@pytest.mark.parametrize(
    ("given", "reason"),
    [("stop", "stop"), ("tool_calls", "stop"), ("eos_token", "stop"), ("length", "length"), ("MAX_TOKENS", "length"),
     ("content_filter", "content_filter"), ("safety", "content_filter"), (None, "stop")],
)  # fmt: skip
def test_finish_reasons_are_the_three_of_the_seam(given: str | None, reason: str) -> None:
    assert decode(sse(chunk(content="x"), chunk(given), "[DONE]"))[-1] == Finished(reason)


@pytest.mark.parametrize("given", ["abort", "error"])
def test_an_answer_that_the_server_gave_up_fails(given: str) -> None:
    with pytest.raises(BackendFailed):
        decode(sse(chunk(content="x"), chunk(given), "[DONE]"))


USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 4,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


@pytest.mark.parametrize("place", ["own chunk", "every chunk", "finish chunk"])
def test_usage_is_found_wherever_it_is(place: str) -> None:
    texts, last = [chunk(content="a"), chunk(content="b")], chunk("stop")
    if place == "every chunk":
        texts = [{**one, "usage": {**USAGE, "completion_tokens": n}} for n, one in enumerate(texts)]
    if place != "own chunk":
        last["usage"] = USAGE
    tail = [{"choices": [], "usage": USAGE}] if place == "own chunk" else []
    finished = decode(sse(*texts, last, *tail, "[DONE]"))[-1]
    assert isinstance(finished, Finished)
    usage = finished.usage
    assert usage is not None
    assert (usage.input, usage.output, usage.cached, usage.reasoning) == (9, 4, 3, 2)


@pytest.mark.parametrize("usage", [None, {}, "many", {"prompt_tokens": None}, {"prompt_tokens": -1}])
def test_usage_that_says_nothing_is_none(usage: Any) -> None:
    finished = decode(sse({**chunk("stop"), "usage": usage}, "[DONE]"))[-1]
    assert isinstance(finished, Finished)
    assert finished.usage is None


def test_cached_tokens_come_from_the_timings_of_llama_cpp() -> None:
    last = {**chunk("stop"), "usage": {"prompt_tokens": 9, "completion_tokens": 1}, "timings": {"cache_n": 5}}
    finished = decode(sse(last, "[DONE]"))[-1]
    assert isinstance(finished, Finished)
    assert finished.usage is not None
    assert finished.usage.cached == 5


def test_log_probabilities_have_the_shape_of_the_responses_api() -> None:
    one = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.5, "bytes": []}]}
    given = chunk(content="a")
    given["choices"][0]["logprobs"] = {"content": [one]}
    top = {"token": "b", "bytes": [], "logprob": -1.5}
    assert stream(given)[0] == TextDelta("a", [{"token": "a", "bytes": [97], "logprob": -0.5, "top_logprobs": [top]}])


def test_log_probabilities_without_bytes_get_those_of_the_token() -> None:
    given = chunk(content="é")
    given["choices"][0]["logprobs"] = {"content": [{"token": "é", "logprob": -0.5}]}
    assert stream(given)[0] == TextDelta(
        "é", [{"token": "é", "bytes": [195, 169], "logprob": -0.5, "top_logprobs": []}]
    )


@pytest.mark.parametrize(
    "logprobs", [5, "x", {"content": 5}, {"content": [5]}, {"content": [{"top_logprobs": 5}, {"bytes": 5, "token": 5}]}]
)
def test_log_probabilities_of_any_shape_do_no_harm(logprobs: Any) -> None:
    given = chunk(content="a")
    given["choices"][0]["logprobs"] = logprobs
    assert text_of(stream(given)) == "a"


def test_a_stream_may_end_without_done_once_the_reason_has_come() -> None:
    assert decode(sse(chunk(content="x"), chunk("stop")))[-1] == Finished("stop")
    assert decode(sse(chunk(content="x"), chunk("stop")).rstrip(b"\n"))[-1] == Finished("stop")


@pytest.mark.parametrize("cut", [b"", sse(chunk(content="x")), sse(chunk(content="x")) + b'data: {"cho'])
def test_a_stream_that_breaks_off_fails(cut: bytes) -> None:
    with pytest.raises(BackendFailed):
        decode(cut)


def test_what_comes_after_done_is_ignored() -> None:
    assert text_of(decode(sse(chunk(content="x"), "[DONE]", chunk(content="y")))) == "x"


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ({"error": {"message": "boom", "code": 500}}, BackendFailed),
        ({"error": {"message": "bad", "type": "BadRequestError", "code": 400}}, BackendRejected),
        ({"error": {"message": "slow down", "code": "429"}}, BackendBusy),
        ({"error": "plain text"}, BackendFailed),
        ({"object": "error", "message": "old vllm", "code": 400}, BackendRejected),
        ("not json", BackendFailed),
        ("null", BackendFailed),
        ("[[[", BackendFailed),
        ({"choices": "none"}, BackendFailed),
    ],
)
def test_an_error_inside_the_stream_is_raised_behind_the_text_before_it(event: Any, kind: type[BackendError]) -> None:
    decoder = ChatDecoder(server="s")
    assert decoder.feed(sse(chunk(content="x"), event, chunk(content="never"))) == [TextDelta("x")]
    assert type(decoder.failure) is kind
    with pytest.raises(kind):
        decoder.end()


def test_the_error_field_of_llama_cpp_is_an_error() -> None:
    decoder = ChatDecoder(server="s")
    decoder.feed(b'error: {"code": 500, "message": "boom"}\n\n')
    assert decoder.failure is not None
    assert "boom" in decoder.failure.message


def test_an_error_never_shows_the_key() -> None:
    decoder = ChatDecoder(server="s", key="sk-secret")
    decoder.feed(b"data: nonsense sk-secret\n\n")
    assert decoder.failure is not None
    assert "sk-secret" not in decoder.failure.message


def test_an_event_without_end_is_bounded() -> None:
    decoder = ChatDecoder(server="s")
    decoder.feed(b"data: " + b"x" * (EVENT_LIMIT - 10))
    with pytest.raises(BackendFailed):
        decoder.feed(b"xxxxx")


def test_a_whole_answer_gives_the_same_deltas() -> None:
    message = {
        "role": "assistant",
        "content": "hello",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    body = {"choices": [{"message": message, "finish_reason": "tool_calls"}], "usage": USAGE}
    deltas = ChatDecoder(server="s").whole(json.dumps(body).encode())
    assert deltas[:2] == [ReasoningDelta("hm"), TextDelta("hello")]
    assert calls_of(deltas) == [("c1", "f", "{}")]
    assert isinstance(deltas[-1], Finished)


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"[]", b'{"choices":[]}', b'{"error":{"message":"x"}}', b"["])
def test_a_whole_answer_that_is_none_fails(body: bytes) -> None:
    with pytest.raises(BackendFailed):
        ChatDecoder(server="s").whole(body)


REPLY = Reply(
    text="Grüße \U0001f30d! data: [DONE]\n\nend",
    reasoning="first\r\n",
    calls=(Call("look", '{"a": "ö\\n\\ndata:"}'), Call("now"), Call("look", '{"a":[{}]}')),
)
REQUEST = ChatRequest(messages=[Message("user", "hi")], stream=True, stream_options={"include_usage": True})
DIALECTS = [
    Quirks(),
    Quirks(crlf=True),
    Quirks(space=False, comments=True),
    Quirks(crlf=True, comments=True, done=False),
    Quirks(usage="every", whole_calls=True, ids=False, zero_index=True),
    Quirks(usage="finish", interleave=True, stop_after_calls=True),
    Quirks(dict_arguments=True, content_parts=True, reasoning_field="reasoning"),
]


def written(quirks: Quirks) -> bytes:
    answer = Answer(REPLY, REQUEST, quirks, 1)
    return b"".join([*answer.events(), *answer.closing()])


@pytest.mark.parametrize("quirks", DIALECTS, ids=range(len(DIALECTS)))
def test_a_chunk_may_be_split_at_any_byte(quirks: Quirks) -> None:
    data = written(quirks)
    whole = merged(decode(data))
    assert whole[0] == REPLY.text
    assert [json.loads(arguments) for _, arguments in whole[3]] == [json.loads(one.arguments) for one in REPLY.calls]
    for at in range(len(data)):
        decoder = ChatDecoder(server="s")
        deltas = decoder.feed(data[:at]) + decoder.feed(data[at:])
        assert merged(deltas + decoder.end()) == whole, at
    for step in (1, 3):
        assert merged(decode(data, step)) == whole


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text(max_size=12), max_size=8),
    st.sampled_from(["\n\n", "\r\n\r\n", "\r\r", "\n\n\n"]),
    st.lists(st.integers(0, 600), max_size=12),
    st.booleans(),
)
def test_the_splitter_gives_back_any_text_in_any_pieces(
    texts: list[str], end: str, cuts: list[int], spread: bool
) -> None:
    chunks: list[Any] = [chunk(content=text) for text in texts]
    if spread:
        line = end[: max(1, len(end) // 2)] if end != "\n\n\n" else "\n"
        chunks = [json.dumps(one, indent=1).replace("\n", f"{line}data:") for one in chunks]
    data = b": hello" + end.encode() + sse(*chunks, chunk("stop"), "[DONE]", end=end)
    decoder = ChatDecoder(server="s")
    deltas: list[Delta] = []
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, stop in itertools.pairwise(edges):
        deltas += decoder.feed(data[start:stop])
    deltas += decoder.end()
    assert deltas == [*[TextDelta(text) for text in texts if text], Finished("stop")]


TOKENS = [b"data: ", b"\n\n", b"\r", b'{"choices":[', b"[DONE]"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from(TOKENS)), max_size=20))
def test_garbage_ends_in_deltas_or_a_clear_error(pieces: list[bytes]) -> None:
    decoder = ChatDecoder(server="s")
    with contextlib.suppress(BackendError):
        for piece in pieces:
            decoder.feed(piece)
        assert isinstance(decoder.end()[-1], Finished)


FIELDS = st.sampled_from(
    ["choices", "delta", "message", "content", "tool_calls", "function", "name", "arguments", "index", "id", "usage",
     "error", "finish_reason", "logprobs", "top_logprobs", "function_call", "reasoning", "prompt_tokens", "x"]
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(FIELDS, inner, max_size=4)),
    max_leaves=12,
)


def choice(delta: Any, tops: Any) -> Any:
    logprobs = {"content": [{"top_logprobs": tops}, tops]}
    return {"choices": [{"delta": delta, "message": delta, "logprobs": logprobs}]}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(VALUES, st.builds(choice, VALUES, VALUES)), max_size=4))
def test_chunks_of_any_shape_end_in_deltas_or_a_clear_error(chunks: list[Any]) -> None:
    for decoded in (lambda: decode(sse(*chunks, "[DONE]")), lambda: whole_of(chunks)):
        with contextlib.suppress(BackendError):
            deltas = decoded()
            assert isinstance(deltas[-1], Finished)
            for delta in deltas:
                assert not isinstance(delta, TextDelta) or (type(delta.text) is str and delta.text)


def whole_of(chunks: list[Any]) -> list[Delta]:
    return ChatDecoder(server="s").whole(json.dumps(chunks[0] if chunks else {}).encode())
