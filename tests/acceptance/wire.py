"""HTTP by hand for what no SDK sends, and the strictest reading of what comes back.

Every Response object, item and event goes through the installed `openai` package's own types in strict mode, and a
stream through the rules on order, numbers and ids that its readers rely on.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from pydantic import TypeAdapter, ValidationError

from tests.acceptance.contract import hold, hold_event

RESPONSE: TypeAdapter[Any] = TypeAdapter(Response)
ITEM: TypeAdapter[Any] = TypeAdapter(ResponseItem)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

NEVER_NULL = (
    *("temperature", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs", "truncation", "tool_choice"),
    *("tools", "parallel_tool_calls", "text", "store", "background", "service_tier", "metadata", "output", "model"),
)
NULLABLE = (
    *("completed_at", "usage", "reasoning", "max_tool_calls", "max_output_tokens", "previous_response_id"),
    *("instructions", "error", "incomplete_details", "safety_identifier", "prompt_cache_key", "conversation"),
)
TERMINAL = ("response.completed", "response.incomplete", "response.failed")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, which must have OpenAI's shape and nothing else."""
        body = self.json
        assert set(body) == {"error"}, body
        error: dict[str, Any] = body["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str)
        assert error["message"]
        assert isinstance(error["type"], str)
        assert isinstance(error["code"], str)
        assert error["param"] is None or isinstance(error["param"], str)
        assert "Traceback" not in error["message"]
        assert self.headers["x-request-id"].startswith("req_")
        assert self.headers["content-type"] == "application/json"
        return error


def send(
    url: str, method: str, path: str, body: Any = None, *, raw: bytes | None = None, headers: Any = None
) -> Answer:
    """One request to a server whose base URL is `url`, and its whole answer."""
    connection, response = _open(url, method, path, body, raw, headers)
    try:
        answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        hold(method, urlsplit(url).path + path, answer.status, answer.headers.get("content-type", ""), answer.body)
        return answer
    finally:
        connection.close()


def post(url: str, path: str, body: Any) -> Any:
    """The JSON that a request which must succeed was answered with."""
    answer = send(url, "POST", path, body)
    assert answer.status == 200, answer.body
    return answer.json


def get(url: str, path: str) -> Any:
    answer = send(url, "GET", path)
    assert answer.status == 200, answer.body
    return answer.json


def respond(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A response made without streaming, checked."""
    return check_response(post(url, "/responses", {"model": "scripted", **body}))


def stream(url: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All events of a streamed response, checked."""
    return check_stream(read_stream(url, "POST", "/responses", {"model": "scripted", **body, "stream": True}))


def read_stream(url: str, method: str, path: str, body: Any = None) -> list[dict[str, Any]]:
    return list(iter_stream(url, method, path, body))


def iter_stream(url: str, method: str, path: str, body: Any = None) -> Iterator[dict[str, Any]]:
    """The events of a stream as they come; closing the iterator drops the connection. The framing is held to rule."""
    connection, response = _open(url, method, path, body, None, None)
    try:
        assert response.status == 200, response.read()
        assert response.getheader("content-type", "").split(";")[0] == "text/event-stream"
        ended = False
        for block in _blocks(response):
            assert not ended, "something follows [DONE]"
            if block == b"data: [DONE]":
                ended = True
                continue
            if block.startswith(b":"):
                continue
            first, second = block.split(b"\n")
            assert first.startswith(b"event: ")
            assert second.startswith(b"data: ")
            event = json.loads(second[6:])
            assert event["type"] == first[7:].decode()
            hold_event(event)
            yield event
        assert ended, "the stream does not end in [DONE]"
    finally:
        connection.close()


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    block = b""
    while line := response.readline():
        assert b"\r" not in line
        if line == b"\n":
            yield block
            block = b""
        else:
            block += (b"\n" if block else b"") + line[:-1]
    assert not block, "the last event is cut off"


def _open(
    url: str, method: str, path: str, body: Any, raw: bytes | None, headers: Any
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    data = raw if raw is not None else None if body is None else json.dumps(body).encode()
    sent = {"content-type": "application/json"} if data is not None else {}
    connection.request(method, f"{parts.path}{path}", data, {**sent, **(headers or {})})
    return connection, connection.getresponse()


def assert_fits(adapter: TypeAdapter[Any], value: Any) -> None:
    """The value fits the type, strictly. Of a union's complaints only those of the members that were meant are told."""
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        others = {problem["loc"][:-1] for problem in problems if problem["type"] == "literal_error"}
        meant = [one for one in problems if not any(one["loc"][: len(other)] == other for other in others)]
        raise AssertionError(f"{meant or problems[:3]}\n{json.dumps(value)[:2000]}") from None


def check_response(shown: dict[str, Any], *, ended: bool = True) -> dict[str, Any]:
    """A Response object as every known client can read it."""
    assert_fits(RESPONSE, shown)
    assert shown["id"].startswith("resp_")
    assert shown["object"] == "response"
    assert isinstance(shown["created_at"], int | float)
    for name in NEVER_NULL:
        assert shown[name] is not None, name
    for name in NULLABLE:
        assert name in shown, name
    assert "error" in shown
    assert (shown["completed_at"] is not None) == (shown["status"] == "completed")
    assert (shown["incomplete_details"] is not None) == (shown["status"] == "incomplete")
    if ended:
        usage = shown["usage"]
        assert set(usage["input_tokens_details"]) >= {"cached_tokens", "cache_write_tokens"}
        assert set(usage["output_tokens_details"]) >= {"reasoning_tokens"}
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    identifiers = [check_item(item)["id"] for item in shown["output"]]
    assert len(set(identifiers)) == len(identifiers)
    return shown


def check_item(item: dict[str, Any], *, complete: bool = True) -> dict[str, Any]:
    """An item as every known client can read it."""
    assert_fits(ITEM, item)
    assert item["id"]
    if item["type"] in ("message", "function_call", "custom_tool_call"):
        assert item["status"] in ("in_progress", "completed", "incomplete")
    if item["type"] == "message":
        assert isinstance(item["content"], list)
        for part in item["content"]:
            if part["type"] == "output_text":
                assert isinstance(part["annotations"], list)
    if item["type"] == "reasoning":
        assert isinstance(item["summary"], list)
        assert item.get("content", []) is not None
        assert item.get("encrypted_content", "") is not None
    if complete and item["type"] == "function_call":
        json.loads(item["arguments"] or "{}")
    assert "phase" not in item or item["phase"] is not None
    return item


def check_stream(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A whole stream: types, numbers, order, nesting, and agreement of the pieces with the final object."""
    for event in events:
        assert_fits(EVENT, event)
        assert event["type"] == "error" or not event.get("error")
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[0] == "response.created"
    assert kinds[1] in ("response.in_progress", "response.queued")
    assert "response.in_progress" in kinds[1:3]
    assert [kind for kind in kinds if kind in TERMINAL] == [kinds[-1]]
    final = check_response(events[-1]["response"])
    for event in events:
        if "response" in event:
            assert event["response"]["id"] == final["id"]
            check_response(event["response"], ended=event is events[-1])
    seen: dict[str, _ItemEvents] = {}
    for event in events:
        _follow(event, seen)
    done = {identifier: item.done for identifier, item in seen.items()}
    assert None not in done.values(), "an item was added and never done"
    # A run that was resumed or failed may have closed items that are in no final output, but never the other way round.
    assert [item["id"] for item in final["output"]] == [i for i in done if i in {o["id"] for o in final["output"]}]
    for item in final["output"]:
        assert done[item["id"]] == item
    return events


class _ItemEvents:
    def __init__(self, index: int) -> None:
        self.index = index
        self.parts: dict[int, list[str]] = {}
        self.open_parts: set[int] = set()
        self.arguments = ""
        self.arguments_done = False
        self.done: dict[str, Any] | None = None


def _follow(event: dict[str, Any], seen: dict[str, _ItemEvents]) -> None:
    kind = event["type"]
    if kind == "response.output_item.added":
        item = check_item(event["item"], complete=False)
        assert item["id"] not in seen
        assert event["output_index"] == len(seen)
        if item["type"] in ("message", "function_call"):
            assert item["status"] == "in_progress"
        seen[item["id"]] = _ItemEvents(event["output_index"])
        return
    if kind == "response.output_item.done":
        item = check_item(event["item"], complete=event["item"].get("status") != "incomplete")
        held = seen[item["id"]]
        assert held.index == event["output_index"]
        assert held.done is None
        assert not held.open_parts
        _agree(item, held)
        held.done = item
        return
    if "item_id" not in event:
        return
    held = seen[event["item_id"]]
    assert held.index == event["output_index"]
    assert held.done is None, f"{kind} after the item was done"
    if kind == "response.content_part.added":
        assert event["content_index"] == len(held.parts)
        held.parts[event["content_index"]] = []
        held.open_parts.add(event["content_index"])
    elif kind == "response.content_part.done":
        held.open_parts.remove(event["content_index"])
    elif kind in ("response.output_text.delta", "response.refusal.delta", "response.reasoning_text.delta"):
        assert event["content_index"] in held.open_parts
        held.parts[event["content_index"]].append(event["delta"])
    elif kind in ("response.output_text.done", "response.refusal.done", "response.reasoning_text.done"):
        text = event.get("text", event.get("refusal"))
        assert "".join(held.parts[event["content_index"]]) == text
    elif kind in ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"):
        held.arguments += event["delta"]
    elif kind in ("response.function_call_arguments.done", "response.custom_tool_call_input.done"):
        assert event.get("arguments", event.get("input")) == held.arguments
        held.arguments_done = True
    if kind == "response.function_call_arguments.done":
        assert event["name"]
    if kind in ("response.output_text.delta", "response.output_text.done"):
        assert isinstance(event["logprobs"], list)


def _agree(item: dict[str, Any], held: _ItemEvents) -> None:
    """The finished item says what the deltas said."""
    if item["type"] in ("message", "reasoning"):
        texts = [part.get("text", part.get("refusal")) for part in item.get("content", ())]
        assert texts == ["".join(held.parts[index]) for index in sorted(held.parts)]
    elif item["type"] in ("function_call", "custom_tool_call"):
        assert held.arguments_done
        assert item.get("arguments", item.get("input")) == held.arguments


def output_text(response: Mapping[str, Any]) -> str:
    """What a Response object says, as SDKs read it."""
    return "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
        if part["type"] == "output_text"
    )


def assert_paired(messages: list[dict[str, Any]]) -> None:
    """What a strict chat server demands: every call answered right behind its assistant message, no stray result."""
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            assert message["tool_call_id"] in waiting, f"a result without its call: {message}"
            waiting.remove(message["tool_call_id"])
            continue
        assert not waiting, f"calls without a result before {message['role']}: {waiting}"
        waiting = [call["id"] for call in message.get("tool_calls") or ()]
        assert len(set(waiting)) == len(waiting)
    assert not waiting, f"calls without a result at the end: {waiting}"


def told(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Role and text of each message, calls and results in short."""
    lines = []
    for message in messages:
        calls = [
            f"{call['function']['name']}({call['function']['arguments']})" for call in message.get("tool_calls") or ()
        ]
        content = message.get("content")
        lines.append((message["role"], " ".join([*([content] if isinstance(content, str) else ()), *calls])))
    return lines
