"""Request bodies: what is taken, what is refused and how, and that nothing hostile gets further."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stateroom.errors import InvalidRequest, StateroomError
from stateroom.journal.entries import RunSettings
from stateroom.wire import parameters
from stateroom.wire.requests import (
    Bounds,
    CreateRequest,
    check_include,
    decode_conversation,
    decode_count,
    decode_create,
    decode_fork,
    decode_items,
    decode_metadata,
)

BOUNDS = Bounds()

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts | st.sampled_from(["type", "id"]), inner, max_size=3)
    ),
    max_leaves=10,
)


def create(bounds: Bounds = BOUNDS, **body: Any) -> CreateRequest:
    return decode_create(msgspec.json.encode({"model": "m", "input": "hi", **body}), bounds)


def refusal(bounds: Bounds = BOUNDS, **body: Any) -> tuple[str, str | None]:
    with pytest.raises(InvalidRequest) as refused:
        create(bounds, **body)
    assert refused.value.status == 400
    return refused.value.code, refused.value.param


def test_the_smallest_request_gets_the_defaults() -> None:
    request = create()
    assert request == CreateRequest(RunSettings(model="m"), [{"role": "user", "content": "hi"}])
    assert request.store
    assert not request.stream


def test_explicit_nulls_mean_absent() -> None:
    nulls = dict.fromkeys(set(parameters.Create.__struct_fields__) - {"model", "input"})
    assert create(**nulls) == create()
    nested = {
        "reasoning": {"effort": None, "summary": None},
        "text": {"format": None, "verbosity": None},
        "stream_options": {"include_obfuscation": None},
        "background_options": {"completion_window": None},
        "access_programs": {"cyber": None},
        "image": {"context_compression": None},
        "include": [],
        "tools": [],
        "context_management": [],
        "stream": True,
    }
    assert create(**nested) == create(stream=True)


def test_unknown_parameters_are_ignored() -> None:
    assert create(client_metadata={"a": "b"}, stream_id="x", max_tokens=3) == create()


def test_everything_that_is_honoured_reaches_the_settings() -> None:
    body = {
        "instructions": "be brief",
        "tools": [{"type": "function", "name": "f", "parameters": None}],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": False,
        "temperature": 0,
        "top_p": 1,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "max_output_tokens": 16,
        "max_tool_calls": 1,
        "top_logprobs": 20,
        "reasoning": {"effort": "high", "summary": None, "context": "auto"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"a": None}}, "verbosity": "low"},
        "truncation": "auto",
        "include": ["reasoning.encrypted_content"],
    }
    settings = create(**body).settings
    for name, value in body.items():
        if name != "reasoning":
            assert getattr(settings, name) == value, name
    assert settings.reasoning == {"effort": "high", "context": "auto"}


def test_hints_are_kept_to_be_given_back() -> None:
    hints = {
        "metadata": {"a": "b"},
        "user": "u",
        "safety_identifier": "s",
        "service_tier": "flex",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "in_memory",
        "access_programs": {"cyber": "standard"},
    }
    assert create(**hints).settings.echo == hints
    assert create(image={"context_compression": "auto"}).settings.echo == {"image": {"context_compression": "disabled"}}
    options = {"comparison_response_id": "resp_0", "prewarm": False}
    assert create(prompt_cache_options=options).settings.echo == {
        "prompt_cache_options": {"mode": "implicit", "ttl": "30m", "comparison_response_id": "resp_0"},
        "prompt_cache_diagnostics": {"type": "unavailable"},
    }
    assert create(background_options={"completion_window": "soonest", "continuation_id": "c"}) == create()


def test_both_forms_of_a_conversation_are_taken() -> None:
    assert create(conversation="conv_1").conversation == "conv_1"
    assert create(conversation={"id": "conv_1"}).conversation == "conv_1"
    assert create(previous_response_id="resp_1").previous == "resp_1"
    assert refusal(conversation="conv_1", previous_response_id="resp_1")[0] == "mutually_exclusive_parameters"


def test_input_may_be_absent_when_there_is_something_to_go_on_from() -> None:
    for body in ({"conversation": "conv_1"}, {"previous_response_id": "resp_1", "input": []}):
        assert decode_create(msgspec.json.encode({"model": "m", **body}), BOUNDS).input == []
    assert refusal(input=None) == ("missing_required_parameter", "input")
    assert refusal(input=[]) == ("missing_required_parameter", "input")


def test_streaming_background_and_padding_are_asked_for() -> None:
    request = create(stream=True, background=True, stream_options={"include_obfuscation": True})
    assert (request.stream, request.background, request.obfuscate, request.store) == (True, True, True, True)
    assert not create(stream=True, stream_options={"include_obfuscation": False}).obfuscate
    assert not create(stream=True).obfuscate
    assert not create(store=False).store


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"model": None}, "missing_required_parameter", "model"),
        ({"model": ""}, "missing_required_parameter", "model"),
        ({"model": 3}, "invalid_type", "model"),
        ({"input": 3}, "invalid_type", "input"),
        ({"input": ["hi"]}, "invalid_type", "input[0]"),
        ({"input": [{"role": "user", "content": "a"}, {"type": "x"}]}, "unknown_item_type", "input[1].type"),
        ({"prompt": {"id": "p"}}, "unsupported_parameter", "prompt"),
        ({"moderation": {"model": "m"}}, "unsupported_parameter", "moderation"),
        ({"context_management": [{"type": "forgetting"}]}, "unsupported_parameter", "context_management[0]"),
        ({"context_management": [{"type": "compaction"}] * 2}, "unsupported_parameter", "context_management[1]"),
        (
            {"context_management": [{"type": "compaction", "compact_threshold": 999}]},
            "integer_below_min_value",
            "context_management[0].compact_threshold",
        ),
        (
            {"input": [{"type": "compaction_trigger"}, {"role": "user", "content": "a"}]},
            "invalid_value",
            "input[0]",
        ),
        ({"input": [{"type": "compaction_trigger"}]}, "missing_required_parameter", "input"),
        (
            {"background_options": {"completion_window": "2h"}},
            "unsupported_parameter",
            "background_options.completion_window",
        ),
        ({"background_options": {"completion_window": "now"}}, "invalid_value", "background_options.completion_window"),
        ({"prompt_cache_options": {"prewarm": True}}, "unsupported_parameter", "prompt_cache_options.prewarm"),
        ({"image": {"context_compression": "enabled"}}, "unsupported_parameter", "image.context_compression"),
        ({"reasoning": {"mode": "pro"}}, "unsupported_parameter", "reasoning.mode"),
        ({"reasoning": {"effort": "huge"}}, "invalid_value", "reasoning.effort"),
        ({"background": True, "store": False}, "invalid_value", "background"),
        ({"stream_options": {}}, "invalid_value", "stream_options"),
        ({"stream": "true"}, "invalid_type", "stream"),
        ({"include": ["everything"]}, "invalid_value", "include[0]"),
        ({"include": "reasoning.encrypted_content"}, "invalid_type", "include"),
        ({"temperature": 2.1}, "decimal_above_max_value", "temperature"),
        ({"temperature": -0.1}, "decimal_below_min_value", "temperature"),
        ({"top_p": 1.1}, "decimal_above_max_value", "top_p"),
        ({"top_logprobs": 21}, "integer_above_max_value", "top_logprobs"),
        ({"max_output_tokens": 15}, "integer_below_min_value", "max_output_tokens"),
        ({"max_output_tokens": 16.5}, "invalid_type", "max_output_tokens"),
        ({"max_output_tokens": 10**40}, "integer_above_max_value", "max_output_tokens"),
        ({"max_tool_calls": 0}, "integer_below_min_value", "max_tool_calls"),
        ({"safety_identifier": "x" * 129}, "string_above_max_length", "safety_identifier"),
        ({"metadata": {str(n): "" for n in range(17)}}, "object_above_max_properties", "metadata"),
        ({"metadata": {"k": "x" * 513}}, "string_above_max_length", "metadata"),
        ({"metadata": {"k" * 65: "x"}}, "string_above_max_length", "metadata"),
        ({"metadata": {"k": 3}}, "invalid_type", "metadata"),
        ({"truncation": "middle"}, "invalid_value", "truncation"),
        ({"service_tier": "first class"}, "invalid_value", "service_tier"),
        ({"text": {"format": {"type": "xml"}}}, "invalid_value", "text.format.type"),
        (
            {"text": {"format": {"type": "json_schema", "name": "n"}}},
            "missing_required_parameter",
            "text.format.schema",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "n!", "schema": {}}}},
            "invalid_value",
            "text.format.name",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f", "detail": "huge"}]}]},
            "invalid_value",
            "input[0].content[0].detail",
        ),
        ({"conversation": {}}, "missing_required_parameter", "conversation.id"),
        ({"conversation": "c" * 257}, "string_above_max_length", "conversation"),
        ({"tools": {}}, "invalid_type", "tools"),
        ({"tool_choice": 3}, "invalid_type", "tool_choice"),
    ],
)
def test_a_bad_parameter_is_refused_by_name(body: dict[str, Any], code: str, param: str) -> None:
    assert refusal(**body) == (code, param)


def test_a_refusal_says_what_would_be_right() -> None:
    with pytest.raises(InvalidRequest, match="must be one of 'auto', 'disabled'"):
        create(truncation="middle")
    with pytest.raises(InvalidRequest, match="'json_object', 'json_schema', 'text'"):
        create(text={"format": {"type": "xml"}})
    with pytest.raises(InvalidRequest, match="'assistant', 'developer', 'system', 'user'"):
        create(input=[{"role": "robot", "content": ""}])
    with pytest.raises(InvalidRequest, match="expected a string or an array, got a number"):
        create(input=1.5)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"k" * 65: "x"}, "Invalid key in 'metadata': its length must be at most 64."),
        ({"k": "x" * 513}, "Invalid value in 'metadata': its length must be at most 512."),
        ({"k": 3}, "Invalid value in 'metadata': expected a string, got an integer."),
        ({str(n): "" for n in range(17)}, "Invalid value for 'metadata': it must have at most 16 entries."),
    ],
)
def test_what_is_wrong_with_a_map_is_told_of_its_keys_its_values_or_itself(metadata: Any, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        create(metadata=metadata)
    assert refused.value.message == says


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"{} x", "invalid_json"),
        (b'{"model": "m", "input": "hi", "temperature": NaN}', "invalid_json"),
        (b'{"model": "m", "input": "hi", "temperature": Infinity}', "invalid_json"),
        (b'{"model": "m", "input": "hi", "temperature": 1e999}', "invalid_value"),
        (b'{"model": "m", "input": "\\ud800"}', "invalid_json"),
        (b'{"model": "m", "input": "\\udc00 low"}', "invalid_json"),
        (b'{"model": "m", "input": "\xff"}', "invalid_json"),
        (b'{"model": "m", "input": "\xed\xa0\x80"}', "invalid_json"),
        (b'{"model": "m", "input": "a\x00b"}', "invalid_json"),
        (b"[" * 100_000, "json_too_deep"),
        (b'{"a":' * 100_000, "json_too_deep"),
        (b"[]", "invalid_type"),
        (b"null", "invalid_type"),
        (b'"{}"', "invalid_type"),
    ],
)
def test_a_body_that_is_no_request_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode_create(body, BOUNDS)
    assert (refused.value.status, refused.value.code) == (400, code)


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'"{}"', b"[" * 100_000, b"\xff", b"NaN", b"{} {}"])
def test_no_other_endpoint_takes_such_a_body_either(body: bytes) -> None:
    for decode in (decode_count, decode_items, decode_metadata, decode_conversation, decode_fork):
        with pytest.raises(InvalidRequest):
            decode(body, BOUNDS)


def test_nesting_is_counted_exactly_and_not_inside_strings() -> None:
    def nested(depth: int) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for _ in range(depth - 1):
            value = {"a": value}
        return value

    # The body, `text` and `format` are three levels around the schema.
    def body(depth: int) -> dict[str, Any]:
        return {"text": {"format": {"type": "json_schema", "name": "n", "schema": nested(depth - 3)}}}

    bounds = Bounds(depth=20)
    assert create(bounds, **body(20)).settings.text is not None
    assert refusal(bounds, **body(21)) == ("json_too_deep", None)
    brackets = '\\"[' * 50 + "{[" * 50 + '\\\\"'
    assert create(bounds, input=brackets, **body(20)).input == [{"role": "user", "content": brackets}]
    assert refusal(bounds, input=brackets, **body(21)) == ("json_too_deep", None)


@given(json_values, st.integers(1, 6))
def test_the_depth_check_agrees_with_a_walk(value: Any, limit: int) -> None:
    def depth(inner: Any) -> int:
        if isinstance(inner, dict):
            return 1 + max(map(depth, inner.values()), default=0)
        return 1 + max(map(depth, inner), default=0) if isinstance(inner, list) else 0

    body = {"model": "m", "input": "hi", "unheard_of": value}
    refused = None
    try:
        create(Bounds(depth=limit), unheard_of=value)
    except InvalidRequest as error:
        refused = error.code
    assert (refused == "json_too_deep") is (depth(body) > limit)


def test_counts_and_sizes_are_bounded() -> None:
    items = [{"role": "user", "content": "x" * 100}] * 3
    assert refusal(Bounds(items=2), input=items) == ("array_above_max_length", "input")
    assert refusal(Bounds(item_bytes=100), input=items) == ("item_too_large", "input[0]")
    assert refusal(Bounds(item_bytes=100), input="x" * 100) == ("item_too_large", "input[0]")
    assert create(Bounds(item_bytes=200), input=items).input == items
    assert refusal(Bounds(tools=1), tools=[{}, {}]) == ("array_above_max_length", "tools")


@given(st.dictionaries(st.sampled_from(sorted(parameters.Create.__struct_fields__)), json_values))
@example({"model": "m", "input": [{"type": "message", "role": "user", "content": [[]]}]})
@example({"model": "m", "input": "x", "tool_choice": {"type": []}})
def test_no_json_makes_it_raise_anything_but_our_errors(body: dict[str, Any]) -> None:
    encoded = msgspec.json.encode(body)
    for decode in (decode_create, decode_count, decode_items, decode_metadata, decode_conversation, decode_fork):
        try:
            decode(encoded, BOUNDS)
        except StateroomError as error:
            msgspec.json.encode(error.body())


@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda tail: b'{"model":"m","input":' + tail + b"}"))
def test_no_bytes_make_it_raise_anything_but_our_errors(body: bytes) -> None:
    for decode in (decode_create, decode_conversation):
        try:
            decode(body, BOUNDS)
        except StateroomError as error:
            msgspec.json.encode(error.body())


def test_counting_tokens_takes_the_same_context() -> None:
    request = decode_count(b'{"input": "hi", "instructions": "be brief", "tools": null, "model": null}', BOUNDS)
    assert request.settings == RunSettings(instructions="be brief")
    assert request.input == [{"role": "user", "content": "hi"}]
    with pytest.raises(InvalidRequest, match="personality"):
        decode_count(b'{"personality": "friendly"}', BOUNDS)


def test_a_conversation_is_created_with_up_to_twenty_items() -> None:
    assert decode_conversation(b"", BOUNDS).items == []
    request = decode_conversation(b'{"items": [{"role": "user", "content": "hi"}], "metadata": {"a": "b"}}', BOUNDS)
    assert (request.items, request.metadata) == ([{"role": "user", "content": "hi"}], {"a": "b"})
    many = msgspec.json.encode({"items": [{"role": "user", "content": "hi"}] * 21})
    for decode in (decode_conversation, decode_items):
        with pytest.raises(InvalidRequest) as refused:
            decode(many, BOUNDS)
        assert (refused.value.code, refused.value.param) == ("array_above_max_length", "items")


def test_items_are_added_and_their_places_named() -> None:
    assert decode_items(b'{"items": [{"id": "msg_1"}], "include": null}', BOUNDS) == [
        {"type": "item_reference", "id": "msg_1"}
    ]
    with pytest.raises(InvalidRequest) as refused:
        decode_items(b'{"items": [{"type": "x"}]}', BOUNDS)
    assert refused.value.param == "items[0].type"
    with pytest.raises(InvalidRequest) as refused:
        decode_items(b"{}", BOUNDS)
    assert (refused.value.code, refused.value.param) == ("missing_required_parameter", "items")


def test_metadata_is_updated_whole() -> None:
    assert decode_metadata(b'{"metadata": {"a": "b"}}', BOUNDS) == {"a": "b"}
    assert decode_metadata(b'{"metadata": null}', BOUNDS) == {}
    with pytest.raises(InvalidRequest) as refused:
        decode_metadata(b"{}", BOUNDS)
    assert refused.value.param == "metadata"


def test_a_fork_names_at_most_one_place() -> None:
    assert decode_fork(b"", BOUNDS) == decode_fork(b"{}", BOUNDS)
    fork = decode_fork(b'{"after_item_id": "msg_1", "response_id": null, "metadata": {}}', BOUNDS)
    assert (fork.after_item_id, fork.response_id, fork.metadata) == ("msg_1", "", {})
    with pytest.raises(InvalidRequest, match="not both"):
        decode_fork(b'{"after_item_id": "msg_1", "response_id": "resp_1"}', BOUNDS)


def test_include_of_a_query_string_is_checked_the_same_way() -> None:
    check_include(["message.input_image.image_url"])
    with pytest.raises(InvalidRequest) as refused:
        check_include(["x"], "include[]")
    assert refused.value.param == "include[][0]"
