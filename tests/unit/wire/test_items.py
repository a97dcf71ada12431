"""Packing and unpacking of items: what is refused, what is left out, what comes back."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from stateroom import ids
from stateroom.errors import InvalidRequest, StateroomError
from stateroom.journal.entries import Item
from stateroom.wire.decoding import Bounds
from stateroom.wire.item_types import TYPES
from stateroom.wire.items import item_id, pack, prefix, unpack

KEY = "0123456789abcdefghjkmnpqrs"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
unknown_fields = st.dictionaries(st.sampled_from(["x_trace", "internal", "created_by"]), json_values, max_size=2)
statuses = st.sampled_from([None, "completed", "in_progress", "incomplete"])
own_ids = st.sampled_from([None, "", "msg_mine", "0199-uuid"])


@st.composite
def parts(draw: st.DrawFn, role: str) -> dict[str, Any]:
    kind = draw(st.sampled_from(["input_text", "output_text", "refusal", "input_image", "input_file", "hologram"]))
    part: dict[str, Any] = {"type": kind}
    if kind in ("input_text", "output_text"):
        part["text"] = draw(texts)
    if kind == "output_text":
        part |= draw(st.sampled_from([{}, {"annotations": []}, {"annotations": None, "logprobs": []}]))
    if kind == "refusal":
        part["refusal"] = draw(texts)
    if kind == "input_image":
        part |= {
            "image_url": "https://example.org/a.png",
            "file_id": None,
            "detail": draw(st.sampled_from(["auto", "low"])),
        }
    if kind == "input_file":
        part |= {"file_id": "file_1"}
    if kind == "hologram":
        part["beam"] = draw(json_values)
    return part | draw(unknown_fields)


@st.composite
def items(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["message", "reasoning", "function_call", "function_call_output", "custom_tool_call"]))
    item: dict[str, Any] = {"type": kind, "status": draw(statuses), "id": draw(own_ids)}
    if kind == "message":
        role = item["role"] = draw(st.sampled_from(["user", "assistant", "system", "developer"]))
        item["content"] = draw(texts | st.lists(parts(role), max_size=3))
        if draw(st.booleans()):
            del item["type"]
    elif kind == "reasoning":
        item["summary"] = draw(st.sampled_from([None, [], [{"type": "summary_text", "text": "s"}]]))
        item["content"] = draw(st.sampled_from([None, [], [{"text": "t"}], [{"type": "reasoning_text", "text": "t"}]]))
        item["encrypted_content"] = draw(st.none() | texts)
    elif kind == "function_call_output":
        item |= {"call_id": "call_1", "output": draw(texts | st.lists(parts("user"), max_size=2))}
    else:
        item |= {"call_id": "call_1", "name": "f", "arguments" if kind == "function_call" else "input": draw(texts)}
    return item | draw(unknown_fields)


@given(items())
def test_an_item_that_came_back_packs_to_the_same(item: dict[str, Any]) -> None:
    before = copy.deepcopy(item)
    packed = pack(item)
    assert item == before, "the caller's item was changed"
    shown = unpack(packed, item_id(packed, KEY, 3))
    again = pack(shown)
    if "id" not in packed:
        del again["id"]
    assert again == packed
    assert unpack(again, shown["id"]) == shown


@given(items())
def test_what_is_shown_is_complete(item: dict[str, Any]) -> None:
    shown = unpack(pack(item), "msg_1")
    assert shown["type"] == item.get("type", "message")
    assert shown["status"] == (item["status"] or "completed")
    for name, value in item.items():
        if value is not None and name not in ("id", "status", "content", "output", "summary"):
            assert shown[name] == value
    if shown["type"] == "message":
        for part in shown["content"]:
            if part["type"] == "output_text":
                assert isinstance(part["annotations"], list)
                assert isinstance(part["logprobs"], list)
    if shown["type"] == "reasoning":
        assert isinstance(shown["summary"], list)
        assert shown.get("content") != []
        assert None not in shown.values()


@given(st.dictionaries(st.sampled_from(["type", "role", "content", "id", "call_id", "output", "summary"]), json_values))
@example({"role": [], "content": ""})
@example({"role": {}, "content": "", "id": []})
def test_nothing_but_our_errors_comes_out_of_odd_items(item: dict[str, Any]) -> None:
    for kind in (None, *TYPES):
        odd = dict(item) if kind is None else {**item, "type": kind}
        refused: StateroomError | None = None
        try:
            packed = pack(odd, "input[0]")
        except StateroomError as error:
            refused = error
        if refused is None:
            msgspec.json.encode(unpack(packed, "msg_1"))
        else:
            assert refused.status == 400
            assert (refused.param or "").startswith("input[0]")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_nothing_but_our_errors_comes_out_of_damaged_items(
    samples: dict[str, dict[str, Any]], data: st.DataObject
) -> None:
    item = copy.deepcopy(samples[data.draw(st.sampled_from(sorted(samples)))])
    place: Any = item
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(json_values)
    refused: StateroomError | None = None
    try:
        packed = pack(item, "input[0]")
    except StateroomError as error:
        refused = error
    if refused is None:
        shown = unpack(packed, item_id(packed, KEY, 0))
        msgspec.json.encode(shown)
        assert unpack(pack(shown), shown["id"]) == shown
    else:
        assert refused.status == 400
        assert (refused.param or "").startswith("input[0]")


def test_a_packed_item_holds_nothing_that_can_be_derived() -> None:
    user = {"type": "message", "role": "user", "status": "completed", "content": [{"type": "input_text", "text": "hi"}]}
    assert pack(user) == {"role": "user", "content": "hi"}
    answer = {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "phase": None,
        "content": [{"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}],
    }
    assert pack(answer) == {"role": "assistant", "content": "hi"}
    assert pack({"type": "reasoning", "summary": [], "encrypted_content": None}) == {"type": "reasoning"}


def test_text_with_annotations_stays_a_part() -> None:
    part = {"type": "output_text", "text": "hi", "annotations": [{"type": "file_path", "file_id": "f", "index": 0}]}
    packed = pack({"role": "assistant", "content": [part]})
    assert packed["content"] == [part]
    assert unpack(packed, "msg_1")["content"] == [{**part, "logprobs": []}]


def test_fields_that_clients_break_on_are_never_null() -> None:
    tools = [{"name": "t", "input_schema": {}, "annotations": None, "description": None}]
    shown = unpack(pack({"type": "mcp_list_tools", "server_label": "s", "tools": tools, "error": None}), "mcpl_1")
    assert shown == {
        "id": "mcpl_1",
        "type": "mcp_list_tools",
        "server_label": "s",
        "tools": [{"name": "t", "input_schema": {}}],
    }


def test_an_own_id_is_kept_and_a_missing_one_is_derived_from_the_place() -> None:
    assert item_id(pack({"role": "user", "content": "hi", "id": "mine"}), KEY, 2) == "mine"
    derived = item_id(pack({"type": "function_call", "call_id": "c", "name": "f", "arguments": ""}), KEY, 2)
    assert derived == f"fc_{KEY}0002"
    assert ids.parse_item_id(derived) == (KEY, 2)
    assert prefix("stateroom:unheard_of") == "item"


def test_an_item_is_shown_under_the_id_it_is_asked_for() -> None:
    assert unpack({"role": "user", "content": "hi", "id": "mine"}, "msg_1")["id"] == "msg_1"
    assert unpack({"type": "compaction", "encrypted_content": "x", "id": "mine"}, "cmp_1")["id"] == "cmp_1"


def test_the_usual_detail_of_an_image_is_not_kept() -> None:
    image = {"type": "input_image", "image_url": "https://example.org/a.png", "detail": "auto"}
    packed = pack({"role": "user", "content": [image]})
    assert packed["content"] == [{"type": "input_image", "image_url": "https://example.org/a.png"}]
    assert unpack(packed, "msg_1")["content"] == [image]


def test_a_reference_needs_no_type() -> None:
    assert pack({"id": "msg_1"}) == {"type": "item_reference", "id": "msg_1"}
    assert pack({"id": "msg_1", "type": None}) == {"type": "item_reference", "id": "msg_1"}


def test_bytes_by_reference_are_resolved_or_left_out_but_never_shown() -> None:
    image = {"type": "input_image", "blob": "d1", "media_type": "image/png"}
    document = {"type": "input_file", "blob": "d2", "media_type": "text/plain", "filename": "a.txt"}
    items: list[tuple[Item, str]] = [
        ({"role": "user", "content": [image, document]}, "content"),
        ({"type": "function_call_output", "call_id": "c", "output": [image, document]}, "output"),
    ]
    for item, field in items:
        shown = unpack(item, "msg_1", lambda digest, media_type: f"data:{media_type};base64,{digest}")
        assert shown[field] == [
            {"type": "input_image", "detail": "auto", "image_url": "data:image/png;base64,d1"},
            {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,d2"},
        ]
        for resolve in (None, lambda _digest, _media_type: None):
            assert unpack(item, "msg_1", resolve)[field] == [
                {"type": "input_image", "detail": "auto"},
                {"type": "input_file", "filename": "a.txt"},
            ]
    screenshot = {"type": "computer_screenshot", "blob": "d1", "media_type": "image/png"}
    shown = unpack({"type": "computer_call_output", "call_id": "c", "output": screenshot}, "cuo_1", lambda d, m: "url")
    assert shown["output"] == {"type": "computer_screenshot", "image_url": "url"}


@pytest.mark.parametrize("kind", ["input_image", "input_file", "input_text", "hologram"])
def test_callers_cannot_name_stored_bytes(kind: str) -> None:
    part = {"type": kind, "text": "t", "image_url": "u", "file_id": "f", "blob": "d1"}
    for item in (
        {"role": "user", "content": [part]},
        {"type": "function_call_output", "call_id": "c", "output": [part]},
        {"type": "computer_call_output", "call_id": "c", "output": part},
    ):
        with pytest.raises(InvalidRequest, match="not a field that callers may set"):
            pack(item)


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        ({"type": "telepathy"}, "unknown_item_type", "input[2].type"),
        ({"type": "compaction_trigger"}, "unsupported_item_type", "input[2].type"),
        ({"type": 3}, "invalid_type", "input[2].type"),
        ({"content": "hi"}, "missing_required_parameter", "input[2].type"),
        ({"role": "robot", "content": "hi"}, "invalid_value", "input[2].role"),
        ({"role": "user"}, "missing_required_parameter", "input[2].content"),
        ({"role": "user", "content": None}, "invalid_type", "input[2].content"),
        ({"role": "user", "content": ["hi"]}, "invalid_type", "input[2].content[0]"),
        ({"role": "user", "content": [{"text": "hi"}]}, "missing_required_parameter", "input[2].content[0].type"),
        (
            {"role": "user", "content": [{"type": "input_text"}]},
            "missing_required_parameter",
            "input[2].content[0].text",
        ),
        (
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": 1}]},
            "invalid_type",
            "input[2].content[1].text",
        ),
        (
            {"role": "user", "content": [{"type": "input_image"}]},
            "missing_required_parameter",
            "input[2].content[0].image_url",
        ),
        ({"role": "user", "content": "hi", "status": "done"}, "invalid_value", "input[2].status"),
        ({"role": "user", "content": "hi", "id": "x" * 257}, "string_above_max_length", "input[2].id"),
        (
            {"type": "function_call", "call_id": "c", "name": "f"},
            "missing_required_parameter",
            "input[2].arguments",
        ),
        (
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": {}},
            "invalid_type",
            "input[2].arguments",
        ),
        ({"type": "function_call_output", "output": "x"}, "missing_required_parameter", "input[2].call_id"),
        (
            {"type": "function_call_output", "call_id": "", "output": "x"},
            "string_below_min_length",
            "input[2].call_id",
        ),
    ],
)
def test_a_malformed_item_is_refused_with_its_place(item: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        pack(item, "input[2]")
    assert (refused.value.code, refused.value.param) == (code, param)


def test_content_parts_are_bounded() -> None:
    content = [{"type": "input_text", "text": "a"}] * 3
    with pytest.raises(InvalidRequest) as refused:
        pack({"role": "user", "content": content}, "input[0]", Bounds(content_parts=2))
    assert (refused.value.code, refused.value.param) == ("array_above_max_length", "input[0].content")
