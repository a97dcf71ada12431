"""A context as Responses input: complete for a server that keeps nothing, whatever the order of its items."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.journal.entries import ContextItem, Item
from stateroom.models.responses_history import ResponsesHistory
from stateroom.testing.script_responses import Refused, read_request, seal

RESULT = "[There is no result of this call: it is still running, or it was interrupted.]"


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def call(call_id: str, **more: Any) -> Item:
    return {"type": "function_call", "call_id": call_id, "name": "look", "arguments": "{}", **more}


def output(call_id: str, text: Any = "seen") -> Item:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def thought(name: str, at: str = "here") -> Item:
    upstream = {"at": at, "id": name, "encrypted_content": seal(name, "x")}
    return {"type": "reasoning", "summary": [], "upstream": upstream}


def held(items: list[Item]) -> list[ContextItem]:
    return [ContextItem(f"item_{position}", item) for position, item in enumerate(items)]


def encoded(history: ResponsesHistory) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(b"[" + b"".join(history.fragments()) + b"]")
    return items


def shown(*items: Item, sealed: bool = True) -> list[dict[str, Any]]:
    history = ResponsesHistory("here", sealed=sealed)
    history.extend(held(list(items)))
    return encoded(history)


def kinds(items: list[dict[str, Any]]) -> list[str]:
    return [
        f"{item.get('type') or item['role']} {item.get('call_id') or item.get('id') or ''}".strip() for item in items
    ]


def test_a_dialogue_is_told_in_full() -> None:
    items = shown(
        {"role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
        user("hi"),
        {"role": "assistant", "content": "hello", "phase": "final_answer"},
    )
    assert items[:2] == [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    assert items[2].pop("id").startswith("msg_")
    assert items[2] == {
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "hello", "annotations": []}],
        "phase": "final_answer",
    }


def test_ids_of_answers_that_other_servers_would_refuse_are_replaced() -> None:
    history = ResponsesHistory("here")
    history.extend(
        [
            ContextItem("msg_01abc", {"role": "assistant", "content": "a"}),
            ContextItem("x" * 200, {"role": "assistant", "content": "b"}),
        ]
    )
    first, second = [item["id"] for item in encoded(history)]
    assert first == "msg_01abc"
    assert second.startswith("msg_")
    assert len(second) <= 64


def test_parallel_calls_stay_together_before_their_outputs() -> None:
    items = shown(user("x"), call("a"), call("b"), output("a"), output("b"), user("y"))
    assert kinds(items) == [
        "user",
        "function_call a",
        "function_call b",
        "function_call_output a",
        "function_call_output b",
        "user",
    ]


def test_a_call_without_an_output_gets_a_neutral_one_in_its_place_until_its_own_comes() -> None:
    before = [user("x"), call("a"), user("quickly")]
    items = shown(*before)
    assert kinds(items) == ["user", "function_call a", "function_call_output a", "user"]
    assert items[2]["output"] == RESULT
    after = shown(*before, output("a"))
    assert kinds(after) == ["user", "user", "function_call a", "function_call_output a"]
    assert after[3]["output"] == "seen"


def test_an_output_without_a_call_is_told_by_the_user_and_a_repeated_one_is_dropped() -> None:
    items = shown(user("x"), output("gone"), call("a"), output("a"), output("a"), output("a", "other"))
    assert kinds(items) == ["user", "user", "function_call a", "function_call_output a", "user"]
    assert items[1]["content"] == "Result of the tool call gone:\nseen"
    assert items[4]["content"] == "Further result of the tool call a:\nother"


def test_reasoning_goes_back_to_its_server_as_it_came() -> None:
    shaped = {
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": "hm"}],
        "content": [{"type": "reasoning_text", "text": "thought"}],
        "encrypted_content": "sr1.ours",
        "upstream": {"at": "here", "id": "rs_9", "encrypted_content": "gAAA", "kept": 1},
    }
    items = shown(user("x"), shaped, call("a"), output("a"))
    assert items[1] == {
        "type": "reasoning",
        "id": "rs_9",
        "summary": shaped["summary"],
        "content": shaped["content"],
        "encrypted_content": "gAAA",
        "kept": 1,
    }


@pytest.mark.parametrize(
    "item",
    [
        thought("rs_1", at="elsewhere"),
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "of a chat server"}]},
        {"type": "reasoning", "summary": [], "upstream": {"at": "here", "id": "rs_1"}},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]},
    ],
)
def test_reasoning_that_this_server_cannot_read_stays_behind(item: Item) -> None:
    assert kinds(shown(user("x"), item, call("a"), output("a")))[1] == "function_call a"


def test_reasoning_that_a_client_brought_sealed_goes_along_under_its_own_id() -> None:
    foreign = {"type": "reasoning", "id": "rs_f", "encrypted_content": "gAAA"}
    items = shown(user("x"), foreign, call("a"), output("a"))
    assert items[1] == {"type": "reasoning", "id": "rs_f", "summary": [], "encrypted_content": "gAAA"}


def test_reasoning_of_which_nothing_came_is_left_out() -> None:
    assert kinds(shown(user("x"), thought("rs_1"), user("y"), thought("rs_2"))) == ["user", "user"]


def test_reasoning_moves_with_its_call() -> None:
    items = shown(user("x"), thought("rs_1"), call("a"), user("quickly"), output("a"))
    assert kinds(items) == ["user", "user", "reasoning rs_1", "function_call a", "function_call_output a"]


def test_without_sealed_reasoning_the_rest_stays_as_it_is() -> None:
    assert kinds(shown(user("x"), thought("rs_1"), call("a"), output("a"), sealed=False)) == [
        "user",
        "function_call a",
        "function_call_output a",
    ]


def test_custom_tools_and_namespaces_are_told_as_the_functions_that_they_are_to_the_model() -> None:
    items = shown(
        {"type": "custom_tool_call", "call_id": "a", "name": "patch", "input": "*** x"},
        {"type": "custom_tool_call_output", "call_id": "a", "output": "done"},
        call("b", namespace="crm"),
        output("b"),
    )
    assert items[0]["type"] == "function_call"
    assert json.loads(items[0]["arguments"]) == {"input": "*** x"}
    assert items[1]["type"] == "function_call_output"
    assert items[2]["name"] == "crm__look"
    assert "namespace" not in items[2]


def test_calls_are_sent_with_the_fields_that_their_server_gave_them_and_with_whole_arguments() -> None:
    items = shown(call("a", extra={"signature": "s", "call_id": "no"}, arguments="cut of"), output("a"))
    assert items[0] == {
        "type": "function_call",
        "call_id": "a",
        "name": "look",
        "arguments": '{"input":"cut of"}',
        "signature": "s",
    }


def test_items_of_the_servers_own_go_back_to_it_and_nowhere_else() -> None:
    item = {"type": "compaction", "encrypted_content": "x", "upstream": {"at": "here", "id": "cmp_1"}}
    assert shown(user("x"), item)[1] == {"type": "compaction", "id": "cmp_1", "encrypted_content": "x"}
    assert kinds(shown(user("x"), {**item, "upstream": {"at": "there", "id": "cmp_1"}})) == ["user"]


def test_images_and_files_go_along_and_urls_that_lead_elsewhere_do_not() -> None:
    parts = [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
        {"type": "input_image", "image_url": "http://internal/x.png"},
        {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,AAAA"},
        {"type": "input_file", "filename": "b.txt", "file_url": "http://internal/b.txt"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]
    sent = shown({"role": "user", "content": parts}, call("a"), output("a", parts[:2]))
    assert sent[0]["content"] == [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
        {"type": "input_text", "text": "[an image that is not available]"},
        {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,AAAA"},
        {"type": "input_text", "text": "[the file b.txt is not available]"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]
    assert sent[2]["output"] == [
        {"type": "input_text", "text": "see"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "low"},
    ]


@pytest.mark.parametrize(
    ("given_output", "told"),
    [
        (None, ""),
        ("text", "text"),
        ([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}], "a\nb"),
        ([{"odd": 1}], '{"odd":1}'),
        ({"type": "input_text", "text": "a"}, "a"),
    ],
)
def test_outputs_of_text_alone_are_strings(given_output: Any, told: str) -> None:
    assert shown(call("a"), output("a", given_output))[1]["output"] == told


def test_other_kinds_of_calls_are_told_as_functions() -> None:
    items = shown(
        {"type": "shell_call", "call_id": "s", "action": {"commands": ["ls"]}},
        {"type": "shell_call_output", "call_id": "s", "output": [{"stdout": "a", "stderr": "", "outcome": {}}]},
        {"type": "mcp_call", "server_label": "m", "name": "find", "arguments": '{"q":1}', "output": "found"},
        {"type": "web_search_call", "status": "completed"},
    )
    assert [item.get("name") for item in items] == ["shell", None, "find", None]
    assert json.loads(items[0]["arguments"]) == {"action": {"commands": ["ls"]}}
    assert items[3]["output"] == "found"


ITEMS = st.one_of(
    st.sampled_from([user("x"), {"role": "system", "content": "s"}, {"role": "assistant", "content": "said"}]),
    st.builds(call, st.sampled_from("abc")),
    st.builds(output, st.sampled_from("abcd"), st.sampled_from(["one", "two"])),
    st.builds(thought, st.sampled_from(["rs_1", "rs_2"]), st.sampled_from(["here", "here", "there"])),
    st.sampled_from([{"type": "web_search_call", "status": "completed"}, {"type": "erased"}, {"role": "assistant"}]),
)


@given(st.lists(ITEMS, max_size=16))
def test_any_history_is_one_that_a_strict_server_takes(items: list[Item]) -> None:
    body = json.dumps({"model": "m", "input": shown(*items)}).encode()
    try:
        read_request(body)
    except Refused as refused:
        raise AssertionError(f"{refused}: {body!r}") from refused


@given(st.lists(ITEMS, max_size=16), st.lists(st.integers(0, 16), max_size=4))
def test_a_history_that_grew_is_the_same_as_one_made_at_once(items: list[Item], stops: list[int]) -> None:
    grown = ResponsesHistory("here")
    for stop in sorted(stops):
        grown.extend(held(items[:stop]))
        encoded(grown)
    assert grown.continues(held(items))
    grown.extend(held(items))
    assert encoded(grown) == shown(*items)


@given(st.lists(ITEMS, max_size=16))
def test_nothing_that_was_said_gets_lost(items: list[Item]) -> None:
    texts = [item["content"] for item in items if item.get("content")]
    sent = json.dumps(shown(*items))
    assert sum(sent.count(f'"{text}"') for text in {"x", "s", "said"}) >= len(texts)
