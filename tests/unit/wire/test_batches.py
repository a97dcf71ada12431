"""Lines of a batch's input file are read or refused with a code; lines of its output files are JSON on one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.batch import Batch as OpenAIBatch

from stateroom.errors import InvalidRequest
from stateroom.wire.batches import (
    LineError,
    LineUsage,
    answered_line,
    batch_object,
    decode_new_batch,
    error_code,
    is_blank,
    read_line,
    unanswered_line,
    usage_of,
)

RESPONSES = "/v1/responses"
CODES = {
    "invalid_json_line",
    "missing_required_parameter",
    "invalid_type",
    "string_below_min_length",
    "string_above_max_length",
    "invalid_method",
    "invalid_url",
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
BODIES = st.dictionaries(st.sampled_from(["model", "stream", "background", "store", "input", "x"]), JSON, max_size=6)


def line(**changes: Any) -> bytes:
    """A right line, but for the changes; a None takes a field away."""
    whole = {"custom_id": "a", "method": "POST", "url": RESPONSES, "body": {"model": "m"}, **changes}
    return json.dumps({name: value for name, value in whole.items() if value is not None}).encode()


def refusal(given: bytes, endpoint: str = RESPONSES) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        read_line(given, endpoint, 64)
    return caught.value


@settings(deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_stands_on_a_line_it_is_read_or_refused_with_a_known_code(given: bytes) -> None:
    try:
        read_line(given, RESPONSES, 8)
    except InvalidRequest as error:
        refused = error
    else:
        return
    assert refused.code in CODES
    assert refused.message


@settings(deadline=None)
@given(st.text(min_size=1, max_size=512), BODIES)
def test_a_right_line_is_read_as_it_was_written(custom_id: str, body: dict[str, Any]) -> None:
    try:
        given = json.dumps({"custom_id": custom_id, "method": "POST", "url": RESPONSES, "body": body}).encode()
        json.dumps(body, ensure_ascii=False).encode()
        custom_id.encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair is no text
    read = read_line(given, RESPONSES, 64)
    assert read.custom_id == custom_id
    assert json.loads(read.body) == body
    assert read.model == (body["model"] if isinstance(body.get("model"), str) else "")
    assert (read.refusal is not None) == bool(body.get("stream") or body.get("background"))
    assert read.stored == (body.get("store") is not False)


@settings(deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("custom_id", "method", "url", "body", "more"), JSON)))
def test_what_is_missing_or_of_another_type_is_named(given: dict[str, Any]) -> None:
    error = refusal(json.dumps(given).encode())
    assert error.code in CODES
    assert error.param in ("custom_id", "method", "url", "body")


@pytest.mark.parametrize(
    ("given", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"[1]", "invalid_json_line", None),
        (b'"x"', "invalid_json_line", None),
        (b"\xff\xfe", "invalid_json_line", None),
        (b'{"custom_id":"a","method":"POST","url":"/v1/responses","body":{"model":"\xff"}}', "invalid_json_line", None),
        (b"[" * 100_000, "invalid_json_line", None),
        (line(body={"x": json.loads("[" * 80 + "]" * 80)}), "invalid_json_line", None),
        (line(custom_id=None), "missing_required_parameter", "custom_id"),
        (line(custom_id=7), "invalid_type", "custom_id"),
        (line(custom_id=""), "string_below_min_length", "custom_id"),
        (line(custom_id="x" * 513), "string_above_max_length", "custom_id"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/embeddings"), "invalid_url", "url"),
        (line(body=None), "missing_required_parameter", "body"),
        (line(body=[]), "invalid_type", "body"),
        (line(body="x"), "invalid_type", "body"),
    ],
)
def test_what_is_wrong_with_a_line_has_a_code(given: bytes, code: str, param: str | None) -> None:
    error = refusal(given)
    assert (error.code, error.param) == (code, param)
    assert "request body" not in error.message


@pytest.mark.parametrize("name", ["stream", "background"])
def test_what_is_answered_bit_by_bit_has_no_place_in_a_file(name: str) -> None:
    read = read_line(line(body={name: True}), RESPONSES, 64)
    assert read.refusal is not None
    assert (read.refusal.code, read.refusal.param) == ("unsupported_parameter", name)
    assert read_line(line(body={name: False}), RESPONSES, 64).refusal is None


def test_a_chat_completion_is_stored_only_when_that_is_asked_for() -> None:
    for endpoint, body, stored in (
        ("/v1/chat/completions", {}, False),
        ("/v1/chat/completions", {"store": True}, True),
        (RESPONSES, {}, True),
        (RESPONSES, {"store": None}, True),
        (RESPONSES, {"store": False}, False),
        ("/v1/embeddings", {"store": True}, False),
    ):
        assert read_line(line(url=endpoint, body=body), endpoint, 64).stored is stored


@settings(deadline=None)
@given(st.text(max_size=20), JSON, st.sampled_from([None, 2]))
def test_a_line_of_a_file_is_json_without_a_line_break(custom_id: str, body: Any, indent: int | None) -> None:
    try:
        custom_id.encode()
    except UnicodeEncodeError:
        return
    written = answered_line("batch_req_1", custom_id, 200, "req_1", json.dumps(body, indent=indent).encode())
    assert b"\n" not in written
    assert b"\r" not in written
    assert json.loads(written) == {
        "id": "batch_req_1",
        "custom_id": custom_id,
        "response": {"status_code": 200, "request_id": "req_1", "body": body},
        "error": None,
    }


def test_a_request_that_was_never_answered_says_why() -> None:
    assert json.loads(unanswered_line("batch_req_1", "a", "batch_expired", "Too late.")) == {
        "id": "batch_req_1",
        "custom_id": "a",
        "response": None,
        "error": {"code": "batch_expired", "message": "Too late."},
    }


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (
            b'{"output":[{"usage":7}],"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":2},'
            b'"output_tokens":3,"output_tokens_details":{"reasoning_tokens":1},"total_tokens":8}}',
            LineUsage(5, 2, 3, 1),
        ),
        (
            b'{"usage":{"prompt_tokens":5,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2},'
            b'"completion_tokens_details":{"reasoning_tokens":null}}}',
            LineUsage(5, 2, 3, 0),
        ),
        (b'{"usage":{"prompt_tokens":5,"total_tokens":5}}', LineUsage(5)),
        (b'{"usage":null}', LineUsage()),
        (b'{"usage":"much"}', LineUsage()),
        (b"[]", LineUsage()),
    ],
)
def test_the_tokens_of_every_endpoint_are_understood(body: bytes, usage: LineUsage) -> None:
    assert usage_of(body) == usage


@settings(deadline=None)
@given(st.binary(max_size=50) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_answer_is_too_strange_to_look_for_tokens_and_codes(body: bytes) -> None:
    assert isinstance(usage_of(body), LineUsage)
    assert isinstance(error_code(body), str)


def test_the_code_of_an_error_is_found() -> None:
    assert error_code(b'{"error":{"code":"x","message":"y"}}') == "x"
    assert error_code(b'{"error":{"code":7}}') == ""
    assert error_code(b'{"error":"x"}') == ""


@pytest.mark.parametrize("blank", [b"", b" ", b"\r", b"\t \r"])
def test_a_line_on_which_nothing_stands_is_none(blank: bytes) -> None:
    assert is_blank(blank)
    assert not is_blank(blank + b"x")


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"input_file_id": None}, "missing_required_parameter", "input_file_id"),
        ({"input_file_id": ""}, "string_below_min_length", "input_file_id"),
        ({"endpoint": "/v1/moderations"}, "invalid_value", "endpoint"),
        ({"completion_window": "48h"}, "invalid_value", "completion_window"),
        ({"metadata": {"a": 1}}, "invalid_type", "metadata[...]"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, "invalid_value", "output_expires_after.anchor"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 10}},
            "integer_below_min_value",
            "output_expires_after.seconds",
        ),
    ],
)
def test_what_is_wrong_with_a_request_for_a_batch_is_named(change: dict[str, Any], code: str, param: str) -> None:
    whole = {"input_file_id": "file-1", "endpoint": RESPONSES, "completion_window": "24h", **change}
    body = json.dumps({name: value for name, value in whole.items() if value is not None}).encode()
    with pytest.raises(InvalidRequest) as caught:
        decode_new_batch(body)
    assert caught.value.code == code
    assert (caught.value.param or "").startswith(param.split("[")[0])


def test_a_batch_is_of_the_shape_that_clients_know() -> None:
    names = ("created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at")
    times = dict.fromkeys([*names, "expired_at", "cancelling_at", "cancelled_at"], 0)
    shown = batch_object(
        id="batch_1",
        endpoint=RESPONSES,
        model="m",
        errors=[LineError("invalid_url", "No.", 3, "url"), LineError("empty_file", "No.")],
        input_file_id="file-1",
        status="failed",
        output_file_id="",
        error_file_id="file-2",
        times={**times, "created_at": 5_999},
        total=3,
        completed=1,
        failed=2,
        usage=LineUsage(5, 2, 3, 1),
        metadata=None,
    )
    assert set(shown) == set(OpenAIBatch.model_fields)
    read = OpenAIBatch.model_validate(shown, strict=True)
    assert (read.created_at, read.completed_at, read.output_file_id, read.error_file_id) == (5, None, None, "file-2")
    assert read.errors is not None
    assert [(error.line, error.param) for error in read.errors.data or ()] == [(3, "url"), (None, None)]
    assert read.usage is not None
    assert read.usage.total_tokens == 8


@pytest.mark.parametrize("number", ["1e999", "-1E400", "9" * 5_000])
@pytest.mark.parametrize("field", ["model", "stream", "background", "store"])
def test_a_number_that_is_too_large_for_any_reader_is_refused_in_its_line(field: str, number: str) -> None:
    body = f'{{"{field}":{number}}}'
    given = f'{{"custom_id":"a","method":"POST","url":"{RESPONSES}","body":{body}}}'
    refused = refusal(given.encode())
    assert (refused.code, refused.param) == ("invalid_value", field)
