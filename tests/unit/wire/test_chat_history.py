from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stateroom.journal.entries import ContextItem, Item
from stateroom.wire.chat_history import NO_RESULT, ChatHistory

PNG = "data:image/png;base64,AAAA"


def held(items: list[Item]) -> list[ContextItem]:
    return [ContextItem(f"item_{position}", item) for position, item in enumerate(items)]


def encoded(*items: Item, instructions: str | None = None, prefill: str = "", **options: Any) -> list[dict[str, Any]]:
    history = ChatHistory(**options)
    history.extend(held(list(items)))
    return shown(history, instructions, prefill)


def shown(history: ChatHistory, instructions: str | None = None, prefill: str = "") -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = json.loads(b"[" + history.messages(instructions, prefill) + b"]")
    return messages


def user(text: str) -> Item:
    return {"role": "user", "content": text}


def assistant(text: str) -> Item:
    return {"role": "assistant", "content": text}


def call(call_id: str, name: str = "look", arguments: str = "{}", **more: Any) -> Item:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, **more}


def result(call_id: str, output: Any = "done") -> Item:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def reasoning(text: str) -> Item:
    return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def made(call_id: str, name: str = "look", arguments: str = "{}") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def told(call_id: str, content: str = "done") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def roles(messages: list[dict[str, Any]]) -> str:
    return " ".join(message["role"] for message in messages)


def test_messages_keep_their_order_behind_the_instructions() -> None:
    messages = encoded(user("hi"), assistant("hello"), user("bye"), instructions="Be kind.")
    assert messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
    ]


def test_an_empty_history_is_no_message() -> None:
    assert encoded() == []
    assert encoded(instructions="Be kind.") == [{"role": "system", "content": "Be kind."}]


def test_a_developer_message_becomes_a_system_message_where_it_stands() -> None:
    messages = encoded(user("hi"), {"role": "developer", "content": "Short."}, {"role": "system", "content": "Kind."})
    assert roles(messages) == "user system system"


def test_system_messages_can_be_gathered_at_the_start() -> None:
    messages = encoded(user("hi"), {"role": "developer", "content": "Short."}, instructions="Kind.", hoist_system=True)
    assert messages == [{"role": "system", "content": "Kind.\n\nShort."}, {"role": "user", "content": "hi"}]


def test_a_tool_message_stands_right_behind_the_message_that_called() -> None:
    messages = encoded(user("q"), call("c1"), result("c1"), assistant("a"))
    assert messages[1:3] == [{"role": "assistant", "content": None, "tool_calls": [made("c1")]}, told("c1")]
    assert roles(messages) == "user assistant tool assistant"


def test_a_call_moves_down_to_its_result_when_other_items_stand_between() -> None:
    messages = encoded(user("q"), call("c1"), user("q"), result("c1"))
    assert roles(messages) == "user user assistant tool"


def test_adjacent_calls_are_one_message_together_with_the_text_before_them() -> None:
    messages = encoded(user("q"), assistant("let me see"), call("c1"), call("c2"), result("c2", "two"), result("c1"))
    assert messages[1:] == [
        {"role": "assistant", "content": "let me see", "tool_calls": [made("c1"), made("c2")]},
        told("c1"),
        told("c2", "two"),
    ]


def test_calls_of_two_turns_stay_two_messages() -> None:
    messages = encoded(user("q"), call("c1"), result("c1"), call("c2"), result("c2"))
    assert roles(messages) == "user assistant tool assistant tool"


def test_text_after_a_call_joins_the_message_that_called() -> None:
    messages = encoded(call("c1"), assistant("wait"), result("c1"))
    assert messages == [{"role": "assistant", "content": "wait", "tool_calls": [made("c1")]}, told("c1")]


def test_a_call_without_a_result_gets_a_neutral_one_in_its_place() -> None:
    messages = encoded(user("q"), assistant("hm"), call("c1"), call("c2"), result("c2"), user("next"))
    assert messages[1:] == [
        {"role": "assistant", "content": "hm", "tool_calls": [made("c1"), made("c2")]},
        told("c1", NO_RESULT),
        told("c2"),
        {"role": "user", "content": "next"},
    ]


def test_a_late_result_takes_its_call_out_of_the_place_where_it_waited() -> None:
    history = ChatHistory(reasoning_field="reasoning")
    items = [user("q"), reasoning("r"), call("c1"), call("c2"), result("c2"), user("next"), assistant("ok")]
    history.extend(held(items))
    assert roles(shown(history)) == "user assistant tool tool user assistant"
    items.append(result("c1", "late"))
    history.extend(held(items))
    assert shown(history)[1:] == [
        {"role": "assistant", "content": None, "reasoning": "r", "tool_calls": [made("c2")]},
        told("c2"),
        {"role": "user", "content": "next"},
        {"role": "assistant", "content": "ok", "tool_calls": [made("c1")]},
        told("c1", "late"),
    ]


def test_a_moved_call_takes_its_reasoning_along_when_nothing_else_stays() -> None:
    messages = encoded(reasoning("why"), call("c1"), user("x"), result("c1"), reasoning_field="reasoning")
    assert messages[1] == {"role": "assistant", "content": None, "reasoning": "why", "tool_calls": [made("c1")]}


def test_a_repeated_call_that_still_waits_replaces_the_earlier_one() -> None:
    messages = encoded(call("c1"), user("x"), call("c1"), result("c1"))
    assert roles(messages) == "user assistant tool"


def test_a_result_without_a_call_is_told_by_the_user() -> None:
    messages = encoded(result("c9", "found"), user("q"))
    assert roles(messages) == "user user"
    assert "c9" in messages[0]["content"]
    assert "found" in messages[0]["content"]


def test_a_result_that_comes_twice_is_told_once_and_a_changed_one_again() -> None:
    items = [call("c1"), result("c1"), result("c1"), user("x"), result("c1")]
    assert roles(encoded(*items)) == "assistant tool user"
    messages = encoded(*items, result("c1", "changed"))
    assert roles(messages) == "assistant tool user user"
    assert "changed" in messages[-1]["content"]


def test_images_in_a_result_go_into_a_user_message_behind_all_results() -> None:
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "high"}
    messages = encoded(
        call("c1"), call("c2"), result("c1", [{"type": "input_text", "text": "see"}, picture]), result("c2", [picture])
    )
    assert roles(messages) == "assistant tool tool user"
    assert messages[1] == told("c1", "see")
    assert messages[2]["content"]
    lifted = [part for part in messages[3]["content"] if part["type"] == "image_url"]
    assert lifted == [{"type": "image_url", "image_url": {"url": picture["image_url"], "detail": "high"}}] * 2


def test_earlier_reasoning_goes_back_under_the_name_of_the_dialect() -> None:
    items = [reasoning("think"), assistant("said"), user("x")]
    for field in ("reasoning", "reasoning_content"):
        assert encoded(*items, reasoning_field=field)[0] == {"role": "assistant", "content": "said", field: "think"}
    assert encoded(*items)[0] == {"role": "assistant", "content": "said"}


def test_reasoning_belongs_to_the_message_that_follows() -> None:
    messages = encoded(
        reasoning("r1"), assistant("t1"), reasoning("r2"), assistant("t2"), reasoning("r3"), call("c1"), result("c1"),
        reasoning("r4"), user("x"), assistant("t3"), reasoning_field="reasoning",
    )  # fmt: skip
    assert [message.get("reasoning") for message in messages] == ["r1", "r2\n\nr3", None, None, None]
    assert [message["content"] for message in messages] == ["t1", "t2", "done", "x", "t3"]


def test_reasoning_that_nothing_of_the_assistant_follows_is_left_out() -> None:
    items = (assistant("t1"), reasoning("r2"), user("x"), assistant("t2"), user("y"), reasoning("r3"), user("z"))
    messages = encoded(*items, reasoning_field="reasoning")
    assert not any("reasoning" in message for message in messages)


def test_reasoning_that_has_only_a_summary_goes_back_as_that() -> None:
    item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}]}
    assert encoded(item, assistant("a"), reasoning_field="reasoning")[0]["reasoning"] == "short"


def test_unknown_fields_of_a_call_come_back_verbatim() -> None:
    extra = {"extra_content": {"google": {"thought_signature": "abc"}}}
    messages = encoded(call("c1", extra=extra), result("c1"))
    assert messages[0]["tool_calls"] == [{**made("c1"), **extra}]


def test_extra_fields_never_replace_the_call_itself() -> None:
    messages = encoded(call("c1", extra={"id": "other", "function": {}}), result("c1"))
    assert messages[0]["tool_calls"] == [made("c1")]


def test_a_namespace_is_part_of_the_flat_name() -> None:
    messages = encoded(call("c1", namespace="mcp__files"), result("c1"))
    assert messages[0]["tool_calls"][0]["function"]["name"] == "mcp__files__look"


def test_a_custom_call_is_a_function_with_one_input() -> None:
    messages = encoded(
        {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": 'a "b"'},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"},
    )
    assert messages[0]["tool_calls"] == [made("c1", "patch", '{"input":"a \\"b\\""}')]
    assert messages[1] == told("c1", "ok")


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("", "{}"),
        ("  ", "{}"),
        ('{"a": 1}', '{"a": 1}'),
        ('{"a": ', '{"input":"{\\"a\\": "}'),
        ("[1]", '{"input":"[1]"}'),
    ],
)
def test_arguments_that_are_no_object_are_made_one(given: str, sent: str) -> None:
    assert encoded(call("c1", arguments=given), result("c1"))[0]["tool_calls"] == [made("c1", arguments=sent)]


def test_shell_and_other_client_tools_become_calls_and_results() -> None:
    messages = encoded(
        {"type": "shell_call", "call_id": "c1", "action": {"commands": ["ls"]}, "status": "completed"},
        {"type": "shell_call_output", "call_id": "c1", "output": [{"stdout": "a.txt", "stderr": ""}]},
        {"type": "computer_call", "call_id": "c2", "action": {"type": "screenshot"}},
        {"type": "computer_call_output", "call_id": "c2", "output": {"type": "computer_screenshot", "image_url": PNG}},
    )
    assert messages[0]["tool_calls"] == [made("c1", "shell", '{"action":{"commands":["ls"]}}')]
    assert json.loads(messages[1]["content"])["stdout"] == "a.txt"
    assert messages[2]["tool_calls"][0]["function"]["name"] == "computer"
    assert messages[4]["content"][-1] == {"type": "image_url", "image_url": {"url": PNG}}


def test_a_hosted_call_with_its_result_inside_becomes_a_pair() -> None:
    item = {"type": "mcp_call", "name": "add", "arguments": '{"a":1}', "server_label": "math", "output": "2"}
    messages = encoded(item)
    assert messages[0]["tool_calls"] == [made("item_0", "add", '{"a":1}')]
    assert messages[1] == told("item_0", "2")


@pytest.mark.parametrize("kind", ["web_search_call", "mcp_list_tools", "item_reference", "erased", "brand_new_thing"])
def test_items_that_say_nothing_to_a_model_are_left_out(kind: str) -> None:
    assert roles(encoded(user("a"), {"type": kind, "tools": [], "action": {}}, user("b"))) == "user user"


def test_an_unknown_item_with_text_is_told_as_text() -> None:
    messages = encoded({"type": "compaction", "content": [{"type": "summary_text", "text": "so far"}]})
    assert messages == [{"role": "user", "content": "so far"}]


def test_a_refusal_goes_back_as_text() -> None:
    assert encoded({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}) == [
        {"role": "assistant", "content": "no"}
    ]


def test_the_parts_of_a_user_message_keep_their_kind() -> None:
    content = [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": PNG},
        {"type": "input_image", "file_id": "file_1"},
        {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}},
        {"type": "input_file", "filename": "a.txt", "file_data": "data:text/plain;base64,QQ=="},
        {"type": "input_file", "file_id": "file_2"},
    ]
    [message] = encoded({"role": "user", "content": content})
    assert [part["type"] for part in message["content"]] == [
        "text",
        "image_url",
        "text",
        "input_audio",
        "file",
        "text",
    ]


def test_several_texts_of_one_message_become_one_string() -> None:
    content = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert encoded({"role": "user", "content": content}) == [{"role": "user", "content": "a\nb"}]


def test_a_prefill_is_the_last_message_and_keeps_the_reasoning_before_it() -> None:
    messages = encoded(user("q"), reasoning("r"), prefill="Once", reasoning_field="reasoning")
    assert messages[-1] == {"role": "assistant", "content": "Once", "reasoning": "r"}
    assert encoded(user("q"), reasoning("r"), reasoning_field="reasoning") == [{"role": "user", "content": "q"}]


def test_a_history_grows_without_encoding_what_it_has() -> None:
    history = ChatHistory()
    items = held([user("a"), assistant("b"), user("c")])
    history.extend(items)
    before = history.messages()
    items = [*items, *[ContextItem(f"more_{i}", user(str(i))) for i in range(3)]]
    assert history.continues(items)
    history.extend([ContextItem(one.id, {"never": "read"}) for one in items[:3]] + items[3:])
    assert history.messages().startswith(before)
    assert history.consumed == 6


def test_a_history_notices_that_another_one_is_asked_for() -> None:
    history = ChatHistory()
    items = held([user("a"), user("b")])
    history.extend(items)
    assert not history.continues(items[:1])
    assert not history.continues([items[0], ContextItem("other", user("c"))])


IDS = st.sampled_from(["c1", "c2", "c3", ""])
ITEMS = st.one_of(
    st.sampled_from([user("u"), assistant("a"), {"role": "assistant", "content": []}]),
    st.just({"role": "system", "content": "s"}),
    st.builds(reasoning, st.sampled_from(["", "r"])),
    st.builds(call, IDS, arguments=st.sampled_from(["", "{}", "[", '{"a":1}'])),
    st.builds(result, IDS, st.sampled_from(["x", "y", [{"type": "input_image", "image_url": PNG}], None, 3])),
    st.builds(lambda kind, key: {"type": kind, "call_id": key, "output": "o"},
              st.sampled_from(["shell_call", "shell_call_output", "mcp_call", "x_call", "x_call_output"]), IDS),
    st.sampled_from([{"type": "web_search_call"}, {"type": "mystery", "text": "t"}, {}]),
)  # fmt: skip


def check_pairing(messages: list[dict[str, Any]]) -> None:
    """Every tool message answers a call of the assistant message right before its group, and no call stays open."""
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] in waiting
            waiting.remove(message["tool_call_id"])
            continue
        assert not waiting, "a call without a result"
        if message["role"] == "assistant":
            calls = message.get("tool_calls", [])
            assert calls or message["content"], "an empty assistant message"
            waiting = [one["id"] for one in calls]
            assert len(set(waiting)) == len(waiting)
            for one in calls:
                assert isinstance(json.loads(one["function"]["arguments"]), dict)
    assert not waiting


@settings(max_examples=250, deadline=None)
@given(st.lists(ITEMS, max_size=14), st.sampled_from(["", "reasoning"]), st.booleans())
def test_any_sequence_of_items_gives_a_history_that_strict_servers_take(
    items: list[Item], field: str, hoist: bool
) -> None:
    whole = ChatHistory(reasoning_field=field, hoist_system=hoist)
    whole.extend(held(items))
    check_pairing(shown(whole))
    grown = ChatHistory(reasoning_field=field, hoist_system=hoist)
    for count in range(len(items) + 1):
        grown.extend(held(items)[:count])
        check_pairing(shown(grown, "instructions", "prefill"))
    assert shown(grown) == shown(whole)


@settings(max_examples=100, deadline=None)
@given(st.lists(ITEMS, max_size=14))
def test_every_word_of_users_and_results_stays_in_the_history(items: list[Item]) -> None:
    told_items = [*items, user("the last word"), call("kept"), result("kept", "the last result")]
    text = json.dumps(encoded(*told_items))
    assert text.count('"role": "user", "content": "u"') == sum(item == user("u") for item in items)
    assert "the last word" in text
    assert "the last result" in text


ELSEWHERE = "http://169.254.169.254/latest/meta-data"


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": [{"type": "input_image", "image_url": ELSEWHERE}]},
        {"role": "user", "content": [{"type": "computer_screenshot", "image_url": ELSEWHERE}]},
        {"role": "user", "content": [{"type": "input_file", "file_data": ELSEWHERE}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ELSEWHERE, "format": "wav"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA", "url": ELSEWHERE}}]},
        {
            "type": "computer_call_output",
            "call_id": "c",
            "output": {"type": "computer_screenshot", "image_url": ELSEWHERE},
        },
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": ELSEWHERE}]},
        {"type": "code_interpreter_call", "outputs": [{"type": "input_image", "image_url": ELSEWHERE}]},
        {"type": "file_search_call", "results": [{"type": "computer_screenshot", "image_url": ELSEWHERE}]},
    ],
    ids=lambda item: item.get("type", "message"),
)
def test_no_url_is_handed_to_a_model_server_to_be_fetched(item: dict[str, Any]) -> None:
    for message in encoded(item):
        for part in message["content"] if isinstance(message["content"], list) else []:
            assert part["type"] == "text" or ELSEWHERE not in json.dumps(part)
