"""Patches with the official client: by the server in a container, or by the client."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import OpenAI

from tests.acceptance.hosted import PATCH, SHELL, kinds, of_type, patch, said, shell, told_kinds
from tests.acceptance.modelhost import Seen
from tests.acceptance.wire import stream

TOOLS: Any = [SHELL, PATCH]
"""A patch goes where the shell is."""


def ask(client: OpenAI, words: Any, tools: Any = None, **more: Any) -> Any:
    return client.responses.create(model="scripted", input=words, tools=tools or TOOLS, **more)


def outputs(response: Any) -> list[tuple[str, str]]:
    return [(item.status, item.output) for item in of_type(response, "apply_patch_call_output")]


def test_files_are_created_changed_and_deleted(client: OpenAI, seen: Seen) -> None:
    words = [
        patch("create_file", "src/app.py", "+def f():\n+    return 1\n+\n+def g():\n+    return 2\n"),
        patch("update_file", "src/app.py", "@@ def g():\n-    return 2\n+    return 3\n"),
        patch("create_file", "gone.txt", "+x\n"),
        patch("delete_file", "/workspace/gone.txt"),
        shell("cat src/app.py; ls"),
    ]
    answer = ask(client, "\n".join(words))
    assert kinds(answer)[:-1] == [
        *["apply_patch_call", "apply_patch_call_output"] * 4,
        "shell_call",
        "shell_call_output",
    ]
    assert outputs(answer) == [
        ("completed", "Created src/app.py."),
        ("completed", "Updated src/app.py."),
        ("completed", "Created gone.txt."),
        ("completed", "Deleted gone.txt."),
    ]
    call = answer.output[0]
    assert (call.operation.type, call.operation.path, call.status) == ("create_file", "src/app.py", "completed")
    assert said(answer)[0][0] == "def f():\n    return 1\n\ndef g():\n    return 3src\n"
    assert client.responses.retrieve(answer.id).output == answer.output
    assert "container" not in json.dumps(call.model_dump())


def test_what_does_not_fit_is_told(client: OpenAI, seen: Seen) -> None:
    words = [
        patch("create_file", "a", "+1\n"),
        patch("update_file", "a", "@@\n-7\n+8\n"),
        patch("create_file", "a", "+2\n"),
        patch("update_file", "none", "@@\n-7\n+8\n"),
        patch("delete_file", "none"),
        patch("rename_file", "a", ""),
        patch("create_file", "../escape", "+x\n"),
        patch("create_file", "/etc/x", "+x\n"),
        patch("create_file", "", "+x\n"),
        shell("ln -s /etc/passwd link; cat a"),
        patch("update_file", "link", "@@\n-root\n+toor\n"),
    ]
    answer = ask(client, "\n".join(words))
    assert [status for status, _ in outputs(answer)] == ["completed", *["failed"] * 9]
    assert all(text for _, text in outputs(answer))
    assert said(answer)[0][0] == "1"
    assert "Failed: " in seen.messages[-1]["content"]


def test_every_event_comes_in_order(url: str) -> None:
    events = stream(url, {"input": patch("create_file", "a", "+1\n"), "tools": TOOLS})
    assert told_kinds(events)[2:-1] == [
        "output_item.added",
        "output_item.done",
        "output_item.added",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]


def test_the_client_applies_patches_where_no_container_is(client: OpenAI, url: str, seen: Seen) -> None:
    asked = ask(client, patch("create_file", "a", "+1\n"), [PATCH])
    assert kinds(asked) == ["apply_patch_call"]
    call = asked.output[0]
    assert (call.operation.path, call.operation.diff) == ("a", "+1\n")
    result: Any = {
        "type": "apply_patch_call_output",
        "call_id": call.call_id,
        "status": "failed",
        "output": "disk full",
    }
    answer = ask(client, [result], [PATCH], previous_response_id=asked.id)
    assert answer.output_text == "The tool answered: Failed: disk full"
    stream(url, {"input": patch("delete_file", "a"), "tools": [PATCH]})


def test_a_patch_alone_can_work_in_a_container(client: OpenAI) -> None:
    tool = {"type": "apply_patch", "environment": {"type": "container_auto"}}
    first = ask(client, patch("create_file", "a", "+1\n"), [tool])
    assert outputs(first) == [("completed", "Created a.")]
    second = ask(client, patch("update_file", "a", "@@\n-1\n+2\n"), [tool], previous_response_id=first.id)
    assert outputs(second) == [("completed", "Updated a.")]
    third = ask(client, shell("cat a"), previous_response_id=second.id)
    assert said(third) == [("2", "", 0)]


@pytest.mark.parametrize("arguments", ["no json", "{}", '{"operation": {"type": "create_file"}}', '{"operation": 7}'])
def test_malformed_arguments_are_told_to_the_model(client: OpenAI, url: str, arguments: str) -> None:
    answer = ask(client, f"call: apply_patch {arguments}")
    assert kinds(answer) == ["apply_patch_call", "apply_patch_call_output", "message"]
    assert outputs(answer)[0][0] == "failed"
    stream(url, {"input": f"call: apply_patch {arguments}", "tools": TOOLS})


def test_the_choice_of_the_tool_is_kept_to(client: OpenAI, seen: Seen) -> None:
    answer = ask(client, "Do something.", tool_choice={"type": "apply_patch"})
    assert kinds(answer)[0] == "apply_patch_call"
    first, *others = [request.get("tool_choice") for request in seen.requests]
    assert first == {"type": "function", "function": {"name": "apply_patch"}}
    assert others == [None]


def test_large_files_are_patched(client: OpenAI) -> None:
    words = [
        shell("seq 1 400000 > big"),
        patch("update_file", "big", "@@\n 199999\n-200000\n+two hundred thousand\n 200001\n"),
        shell("wc -l < big; sed -n 200000p big; head -c 11000000 /dev/zero > huge"),
        patch("update_file", "huge", "@@\n-a\n+b\n"),
    ]
    answer = ask(client, "\n".join(words))
    assert said(answer)[1][0] == "400000\ntwo hundred thousand\n"
    assert [status for status, _ in outputs(answer)] == ["completed", "failed"]
    assert "larger than" in outputs(answer)[1][1]
