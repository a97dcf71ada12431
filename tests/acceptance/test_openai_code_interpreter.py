"""The code interpreter with the official client and real sandboxes: outputs, images, variables, limits, files."""

from __future__ import annotations

import json
from typing import Any
from urllib.request import urlopen

import pytest
from openai import APIStatusError, OpenAI

from tests.acceptance.hosted import OUTPUTS, PYTHON, container_of, kinds, of_type, python, shell, told_kinds
from tests.acceptance.modelhost import Seen
from tests.acceptance.wire import read_stream, stream

PICTURE = """
import struct, zlib
def png(width, height):
    rows = b"".join(b"\\0" + bytes([200, 30, 30]) * width for _ in range(height))
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
class Picture:
    def _repr_png_(self):
        return png(4, 3)
Picture()
"""


def ask(client: OpenAI, words: Any, tool: Any = PYTHON, **more: Any) -> Any:
    return client.responses.create(model="scripted", input=words, tools=[tool], include=OUTPUTS, **more)


def logs(response: Any) -> list[str]:
    """What each cell printed."""
    return [
        "".join(output.logs for output in call.outputs or () if output.type == "logs")
        for call in of_type(response, "code_interpreter_call")
    ]


def test_code_is_carried_out_and_its_value_told(client: OpenAI, seen: Seen) -> None:
    answer = ask(client, python("print('hello')\n6 * 7"))
    assert kinds(answer) == ["code_interpreter_call", "message"]
    call = answer.output[0]
    assert (call.status, call.code) == ("completed", "print('hello')\n6 * 7")
    assert logs(answer) == ["hello\n42"]
    assert seen.messages[-1]["content"] == "hello\n42"


def test_outputs_are_shown_only_when_they_are_asked_for(client: OpenAI, url: str) -> None:
    plain = client.responses.create(model="scripted", input=python("1 + 1"), tools=[PYTHON])
    assert plain.output[0].outputs is None
    shown = client.responses.retrieve(plain.id, include=OUTPUTS)
    assert logs(shown) == ["2"]
    assert client.responses.retrieve(plain.id).output[0].outputs is None
    hidden = stream(url, {"input": python("'se' + 'cret'"), "tools": [PYTHON]})
    ended = [event for event in hidden if event["type"] == "response.output_item.done"][0]
    assert ended["item"]["outputs"] is None
    told = stream(url, {"input": python("1 + 1"), "tools": [PYTHON], "include": OUTPUTS})
    ended = [event for event in told if event["type"] == "response.output_item.done"][0]
    assert ended["item"]["outputs"] == [{"type": "logs", "logs": "2"}]


def test_every_event_comes_in_order(url: str) -> None:
    events = stream(url, {"input": python("1"), "tools": [PYTHON]})
    assert told_kinds(events)[2:10] == [
        "output_item.added",
        "code_interpreter_call.in_progress",
        "code_interpreter_call_code.delta",
        "code_interpreter_call_code.done",
        "code_interpreter_call.interpreting",
        "code_interpreter_call.completed",
        "output_item.done",
        "output_item.added",
    ]
    added = events[2]["item"]
    assert (added["status"], added["code"], added["outputs"]) == ("in_progress", "", None)
    assert "".join(event["delta"] for event in events if event["type"].endswith("call_code.delta")) == "1"


@pytest.mark.parametrize("store", [True, False])
def test_images_are_shown(client: OpenAI, url: str, store: bool, seen: Seen) -> None:
    answer = ask(client, python(PICTURE), store=store)
    [image] = [output for output in answer.output[0].outputs if output.type == "image"]
    assert image.url.startswith("data:image/png;base64,")
    with urlopen(image.url) as opened:
        assert opened.read().startswith(b"\x89PNG\r\n\x1a\n")
    assert "[1 image shown to the user]" in seen.messages[-1]["content"]
    assert "base64" not in json.dumps(seen.messages)
    if store:
        again = client.responses.retrieve(answer.id, include=OUTPUTS)
        assert again.output[0].outputs == answer.output[0].outputs
    events = stream(url, {"input": python(PICTURE), "tools": [PYTHON], "include": OUTPUTS, "store": store})
    done = next(event for event in events if event["type"] == "response.output_item.done")
    assert done["item"]["outputs"][-1]["url"] == image.url
    events = stream(url, {"input": python(PICTURE), "tools": [PYTHON], "store": store})
    assert image.url not in json.dumps(events)


def test_outputs_are_hidden_in_lists_of_items_too(client: OpenAI) -> None:
    conversation = client.conversations.create()
    answer = ask(client, python(PICTURE), conversation=conversation.id)
    call = answer.output[0]
    listing = client.conversations.items.list
    [hidden] = [item for item in listing(conversation.id) if item.type == "code_interpreter_call"]
    assert hidden.outputs is None
    [shown] = [item for item in listing(conversation.id, include=OUTPUTS) if item.type == "code_interpreter_call"]
    assert shown.outputs == call.outputs
    assert client.conversations.items.retrieve(call.id, conversation_id=conversation.id).outputs is None
    one = client.conversations.items.retrieve(call.id, conversation_id=conversation.id, include=OUTPUTS)
    assert one.outputs == call.outputs
    after = ask(client, "say: on", conversation=conversation.id)
    given = {item.id: item for item in client.responses.input_items.list(after.id, include=OUTPUTS)}
    assert given[call.id].outputs == call.outputs


def test_an_error_is_told_with_its_trace(client: OpenAI, url: str, seen: Seen) -> None:
    answer = ask(client, python("print('before')\nundefined_name"))
    call = answer.output[0]
    assert call.status == "failed"
    assert logs(answer)[0].startswith("before\n")
    assert "NameError: name 'undefined_name' is not defined" in logs(answer)[0]
    assert "/stateroom/" not in logs(answer)[0]
    assert "NameError" in seen.messages[-1]["content"]
    stream(url, {"input": python("1/0"), "tools": [PYTHON]})


def test_variables_stay_from_call_to_call_and_turn_to_turn(client: OpenAI) -> None:
    first = ask(client, "\n".join([python("x = [1]"), python("x.append(2); x")]))
    assert logs(first) == ["", "[1, 2]"]
    second = ask(client, python("x"), previous_response_id=first.id)
    assert logs(second) == ["[1, 2]"]


def test_parallel_cells_run_one_after_the_other(client: OpenAI) -> None:
    calls = [{"name": "python", "arguments": {"code": f"n = globals().get('n', 0) + 1; n * {k}"}} for k in (1, 10)]
    assert logs(ask(client, f"calls: {json.dumps(calls)}")) == ["1", "20"]


def test_a_cell_that_ends_its_process_is_told(client: OpenAI) -> None:
    dead = ask(client, python("x = 1\nimport os; os._exit(3)"))
    assert dead.output[0].status == "failed"
    after = ask(client, python("'x' in globals()"), previous_response_id=dead.id)
    assert logs(after)[0].endswith("False")


def test_huge_output_is_kept_in_parts(client: OpenAI, seen: Seen) -> None:
    answer = ask(client, python("print('x' * 30_000_000); print('the-end')"))
    [text] = logs(answer)
    assert len(text) < 1024 * 1024 + 300
    assert "left out" in text
    assert text.endswith("the-end")
    assert len(seen.messages[-1]["content"]) < 1024 * 1024 + 300


@pytest.mark.parametrize("arguments", ['{"code": 1}', "no json", "{}", '["x"]'])
def test_malformed_arguments_are_told_to_the_model(client: OpenAI, url: str, arguments: str, seen: Seen) -> None:
    answer = ask(client, f"call: python {arguments}")
    assert kinds(answer) == ["code_interpreter_call", "message"]
    assert answer.output[0].status == "failed"
    assert seen.messages[-1]["content"]
    stream(url, {"input": f"call: python {arguments}", "tools": [PYTHON]})


def test_the_shell_and_the_interpreter_share_their_files(client: OpenAI) -> None:
    both = [PYTHON, {"type": "shell", "environment": {"type": "container_auto"}}]
    words = python("open('/mnt/data/a.txt', 'w').write('from python')") + "\n" + shell("cat a.txt; echo b > b.txt")
    answer = client.responses.create(model="scripted", input=words, tools=both, include=OUTPUTS)
    assert answer.output[0].container_id == of_type(answer, "shell_call")[0].environment.container_id
    assert of_type(answer, "shell_call_output")[0].output[0].stdout == "from python"
    after = ask(client, python("open('b.txt').read()"), previous_response_id=answer.id)
    assert logs(after) == ["'b\\n'"]


def test_a_container_that_is_named_is_used(client: OpenAI) -> None:
    made = client.containers.create(name="named")
    client.containers.files.create(made.id, file=("in.csv", b"1,2"))
    answer = ask(client, python("open('/mnt/data/in.csv').read()"), {"type": "code_interpreter", "container": made.id})
    assert container_of(answer) == made.id
    assert logs(answer) == ["'1,2'"]


def test_files_that_are_named_are_there(client: OpenAI) -> None:
    file = client.files.create(file=("table.csv", b"a,b"), purpose="user_data")
    tool = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": [file.id]}}
    assert logs(ask(client, python("open('/mnt/data/table.csv').read()"), tool)) == ["'a,b'"]


def test_the_choice_of_the_tool_is_kept_to(client: OpenAI, seen: Seen) -> None:
    answer = ask(client, "Do something.", tool_choice={"type": "code_interpreter"})
    assert kinds(answer)[0] == "code_interpreter_call"
    first, *others = [request.get("tool_choice") for request in seen.requests]
    assert first == {"type": "function", "function": {"name": "python"}}
    assert others == [None]


def test_no_more_calls_are_made_than_the_request_allows(client: OpenAI) -> None:
    answer = ask(client, "\n".join([python("n = 1"), python("n = 2")]), max_tool_calls=1)
    first, second = of_type(answer, "code_interpreter_call")
    assert (first.status, second.status) == ("completed", "failed")
    assert logs(ask(client, python("n"), previous_response_id=answer.id)) == ["1"]


def test_an_answer_that_names_a_file_cites_it(client: OpenAI) -> None:
    words = python("open('plot.txt', 'w').write('x')") + "\nsay: [plot](sandbox:/mnt/data/plot.txt) is ready"
    part = ask(client, words).output[-1].content[0]
    [note] = part.annotations
    assert (note.type, note.filename) == ("container_file_citation", "plot.txt")
    assert part.text[note.start_index : note.end_index] == "sandbox:/mnt/data/plot.txt"


def test_items_of_one_response_can_be_sent_to_another(client: OpenAI) -> None:
    first = ask(client, python("1 + 1"), store=False)
    items = [item.model_dump(exclude_none=True) for item in first.output]
    words = [{"role": "user", "content": "before"}, *items, {"role": "user", "content": "say: fine"}]
    assert ask(client, words).output_text == "fine"


def test_a_background_stream_can_be_read_again_from_anywhere(url: str) -> None:
    body = {"input": python(PICTURE), "tools": [PYTHON], "background": True, "include": OUTPUTS}
    events = stream(url, body)
    response = events[0]["response"]["id"]
    for after in range(len(events)):
        path = f"/responses/{response}?stream=true&starting_after={after}&include=code_interpreter_call.outputs"
        assert read_stream(url, "GET", path) == events[after + 1 :]


@pytest.mark.parametrize(
    ("container", "param"),
    [
        ({"type": "auto", "memory_limit": "9z"}, "tools[0].container.memory_limit"),
        ({"type": "other"}, "tools[0].container.type"),
        (7, "tools[0].container"),
        ({"type": "auto", "file_ids": ["file-none"]}, "tools[0].container.file_ids[0]"),
    ],
)
def test_a_container_that_makes_no_sense_is_refused(client: OpenAI, container: Any, param: str) -> None:
    with pytest.raises(APIStatusError) as refused:
        ask(client, "hi", {"type": "code_interpreter", "container": container})
    assert refused.value.status_code in (400, 404)
    assert refused.value.param == param
