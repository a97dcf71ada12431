"""The Responses side of the scripted model: requests read as strictly as OpenAI does, answers in its exact events.

Pure: from bytes to a chat request that the script understands, and from its reply to bytes. The server keeps nothing,
so what comes back has to be complete: every call with its output, reasoning whole and before what came of it.
"""

from __future__ import annotations

import base64
from itertools import pairwise
from typing import Any, Final

import msgspec

from stateroom.testing.script import Call, ChatRequest, Message, Reply
from stateroom.testing.script_dialect import Answer, Quirks

_MODEL_ITEMS: Final = frozenset({"reasoning", "function_call"})
_SEAL: Final = "sealed."

_encode = msgspec.json.Encoder().encode


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(
        self, message: str, *, status: int = 400, code: str | None = None, param: str | None = "input"
    ) -> None:
        super().__init__(message)
        error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
        self.status = status
        self.body = _encode({"error": error})


class _Request(msgspec.Struct):
    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    stream: bool = False
    include: list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = "auto"
    text: dict[str, Any] | None = None
    max_output_tokens: int | None = None
    top_logprobs: int | None = None
    previous_response_id: str | None = None


_decode = msgspec.json.Decoder(_Request).decode


class ResponsesRequest(msgspec.Struct):
    """A Responses request, and the chat request that the script is asked in its place."""

    chat: ChatRequest
    sealed: bool
    """Whether the caller wants reasoning that it can carry."""


def read_request(body: bytes) -> ResponsesRequest:
    """Raises Refused, as OpenAI does for what is not complete or was not made here."""
    try:
        asked = _decode(body)
    except (ValueError, RecursionError) as error:
        raise Refused(f"bad request: {error}", param=None) from error
    if asked.previous_response_id:
        raise Refused("Previous response not found: nothing is kept here.", code="previous_response_not_found")
    items = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else asked.input
    _check_calls(items)
    _check_reasoning(items)
    messages = [Message("system", asked.instructions)] if asked.instructions else []
    include = asked.include or []
    chat = ChatRequest(
        messages=messages + _messages(items),
        model=asked.model,
        stream=asked.stream,
        tools=[{"type": "function", "function": tool} for tool in _callable(asked)],
        tool_choice=_choice(asked.tool_choice),
        response_format=_format(asked.text),
        max_completion_tokens=asked.max_output_tokens,
        logprobs="message.output_text.logprobs" in include,
        top_logprobs=asked.top_logprobs,
        size=len(_encode([asked.input, asked.instructions, asked.tools])),
    )
    return ResponsesRequest(chat, "reasoning.encrypted_content" in include)


def _kind(item: dict[str, Any]) -> str:
    return str(item.get("type") or "message")


def _check_calls(items: list[dict[str, Any]]) -> None:
    waiting: set[Any] = set()
    for item in items:
        call_id = item.get("call_id")
        if _kind(item) == "function_call":
            if call_id in waiting:
                raise Refused(f"Two function calls with the call_id {call_id}.")
            waiting.add(call_id)
        elif _kind(item) == "function_call_output":
            if call_id not in waiting:
                raise Refused(f"No tool call found for function call output with call_id {call_id}.")
            waiting.remove(call_id)
    for call_id in waiting:
        raise Refused(f"No tool output found for function call {call_id}.")


def _check_reasoning(items: list[dict[str, Any]]) -> None:
    for item, after in pairwise([*items, {"role": "user"}]):
        if _kind(item) != "reasoning":
            continue
        name = item.get("id")
        if _kind(after) not in _MODEL_ITEMS and after.get("role") != "assistant":
            raise Refused(f"Item '{name}' of type 'reasoning' was provided without its required following item.")
        sealed = item.get("encrypted_content")
        if sealed is None and not item.get("content"):
            raise Refused(
                f"Item with id '{name}' not found. Items are not persisted when `store` is false.", status=404
            )
        if sealed is not None and opened(sealed) is None:
            text = f"The encrypted content for item {name} could not be verified."
            raise Refused(text, code="invalid_encrypted_content")
        if sealed is not None and (opened(sealed) or "").partition(" ")[0] != name:
            text = f"The encrypted content for item {name} could not be verified: it is of another item."
            raise Refused(text, code="invalid_encrypted_content")


def seal(name: str, text: str) -> str:
    """The `encrypted_content` of a reasoning item."""
    return _SEAL + base64.urlsafe_b64encode(f"{name} {text}".encode()).decode()


def opened(sealed: Any) -> str | None:
    """Its id and text; None when it was not made here."""
    if not isinstance(sealed, str) or not sealed.startswith(_SEAL):
        return None
    try:
        return base64.urlsafe_b64decode(sealed[len(_SEAL) :]).decode()
    except ValueError:
        return None


def _messages(items: list[dict[str, Any]]) -> list[Message]:
    messages: list[Message] = []
    calling: Message | None = None
    for item in items:
        kind = _kind(item)
        if kind == "message":
            messages.append(Message(item["role"], item.get("content")))
        elif kind == "function_call":
            if calling is None:
                calling = Message("assistant", None, [])
                messages.append(calling)
            calling.tool_calls = [*(calling.tool_calls or []), item]
            continue
        elif kind == "function_call_output":
            messages.append(Message("tool", item.get("output")))
        if kind != "reasoning":
            calling = None
    return messages


def _callable(asked: _Request) -> list[dict[str, Any]]:
    """The tools that may be called."""
    tools, choice = asked.tools or [], asked.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        names = {tool.get("name") for tool in choice.get("tools") or ()}
        return [tool for tool in tools if tool.get("name") in names]
    return tools


def _choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "allowed_tools":
        return choice.get("mode")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _format(text: dict[str, Any] | None) -> dict[str, Any] | None:
    wanted = (text or {}).get("format") or {}
    if wanted.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": {name: wanted.get(name) for name in ("name", "schema", "strict")}}
    return {"type": "json_object"} if wanted.get("type") == "json_object" else None


class ResponsesAnswer(Answer):
    """One reply to one Responses request, ready to be written."""

    def __init__(self, reply: Reply, asked: ResponsesRequest, quirks: Quirks, number: int) -> None:
        super().__init__(reply, asked.chat, quirks, number)
        self.sealed = asked.sealed
        self._sequence = 0
        self._tail = b""
        """Events that go out in front of the next ones."""
        reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(self.finish)
        self._incomplete = {"reason": reason} if reason else None

    def whole(self) -> bytes:
        return _encode(self._response("incomplete" if self._incomplete else "completed"))

    def events(self) -> list[bytes]:
        """The first begins the response; each further one holds a piece, with what has to stand around it."""
        begun = {**self._response("in_progress"), "output": [], "usage": None}
        events = [self._event("created", response=begun) + self._event("in_progress", response=begun)]
        if self.quirks.comments:
            self._tail = b": keep-alive" + self._end() + self._event("something.new", delta="unheard of")
        for index, item in enumerate(self._items()):
            opening, pieces, closing = self._written(index, item)
            if not pieces and self._tail:
                self._tail += opening
            elif not pieces:
                events[-1] += opening
            for position, piece in enumerate(pieces):
                events.append(self._tail + (opening if position == 0 else b"") + piece)
                self._tail = b""
            self._tail += closing
        return events

    def closing(self) -> list[bytes]:
        status = "incomplete" if self._incomplete else "completed"
        last = [self._tail + self._event(status, response=self._response(status))]
        return [*last, self._data(b"[DONE]")] if self.quirks.done else last

    def error_event(self) -> bytes:
        given = self.reply.error or {"message": "scripted failure", "code": "server_error"}
        error = {"code": str(given.get("code") or "server_error"), "message": given["message"]}
        plain = self._numbered({"type": "error", **error, "param": None})
        failed = {**self._response("failed"), "output": [], "error": error, "usage": None}
        return plain + self._event("failed", response=failed)

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": f"resp_{self.number}",
            "object": "response",
            "created_at": 1_700_000_000,
            "status": status,
            "error": None,
            "incomplete_details": self._incomplete if status == "incomplete" else None,
            "model": self.request.model,
            "output": self._items(),
            "parallel_tool_calls": True,
            "store": False,
            "tool_choice": self.request.tool_choice or "auto",
            "tools": [],
            "usage": self.usage(),
        }

    def usage(self) -> dict[str, Any]:
        if self.reply.usage is not None:
            return self.reply.usage
        told = super().usage()
        return {
            "input_tokens": told["prompt_tokens"],
            "input_tokens_details": {**told["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": told["completion_tokens"],
            "output_tokens_details": told["completion_tokens_details"],
            "total_tokens": told["total_tokens"],
        }

    def _items(self) -> list[dict[str, Any]]:
        reply, items = self.reply, []
        if self._reasons() or reply.summary:
            items.append(self._reasoning())
        if self.pieces or reply.refusal or not (reply.calls or items):
            items.append(self._message())
        return items + [self._function_call(position, call) for position, call in enumerate(reply.calls)]

    def _reasoning(self) -> dict[str, Any]:
        name, reply = f"rs_{self.number}", self.reply
        item: dict[str, Any] = {"id": name, "type": "reasoning", "summary": []}
        if reply.summary:
            item["summary"] = [{"type": "summary_text", "text": reply.summary}]
        if reply.reasoning and not self.quirks.hidden_reasoning:
            item["content"] = [{"type": "reasoning_text", "text": reply.reasoning}]
        if self.sealed:
            item["encrypted_content"] = seal(name, reply.reasoning)
        return item

    def _message(self) -> dict[str, Any]:
        parts: list[dict[str, Any]] = []
        if self.reply.refusal:
            parts.append({"type": "refusal", "refusal": self.reply.refusal})
        else:
            logprobs = [self._logprob(piece) for piece in self.pieces] if self.request.logprobs else []
            parts.append({"type": "output_text", "text": "".join(self.pieces), "annotations": [], "logprobs": logprobs})
        status = "incomplete" if self._incomplete else "completed"
        message = {"id": f"msg_{self.number}", "type": "message", "status": status, "role": "assistant"}
        phase = {"phase": self.reply.phase} if self.reply.phase else {}
        return {**message, **phase, "content": parts}

    def _function_call(self, position: int, call: Call) -> dict[str, Any]:
        name = {"name": call.name, "arguments": call.arguments}
        call_id = f"call_{self.number}_{position}"
        made = {"id": f"fc_{self.number}_{position}", "type": "function_call", "status": "completed"}
        return {**made, "call_id": call_id, **name, **call.extra}

    # Events.

    def _written(self, index: int, item: dict[str, Any]) -> tuple[bytes, list[bytes], bytes]:
        """An item as what begins it, its pieces, and what ends it."""
        place = {"item_id": item["id"], "output_index": index}
        opening = self._event("output_item.added", output_index=index, item=_begun(item))
        between: tuple[bytes, list[bytes], bytes] = (b"", [], b"")
        if not self.quirks.whole_items:
            if item["type"] == "reasoning":
                between = self._reasoning_events(place, item)
            elif item["type"] == "message":
                between = self._message_events(place, item["content"][0])
            else:
                between = self._call_events(place, item)
        done = self._event("output_item.done", output_index=index, item=item)
        return opening + between[0], between[1], between[2] + done

    def _reasoning_events(self, place: dict[str, Any], item: dict[str, Any]) -> tuple[bytes, list[bytes], bytes]:
        opening, closing, pieces = b"", b"", []
        for position, part in enumerate(item["summary"]):
            at = {**place, "summary_index": position}
            opening += self._event("reasoning_summary_part.added", **at, part={"type": "summary_text", "text": ""})
            for piece in Reply(text=part["text"]).chunks():
                opening += self._event("reasoning_summary_text.delta", **at, delta=piece)
            opening += self._event("reasoning_summary_text.done", **at, text=part["text"])
            opening += self._event("reasoning_summary_part.done", **at, part=part)
        for part in item.get("content", ()):
            at = {**place, "content_index": 0}
            opening += self._event("content_part.added", **at, part={"type": "reasoning_text", "text": ""})
            pieces = [
                self._event("reasoning_text.delta", **at, delta=piece) for piece in Reply(text=part["text"]).chunks()
            ]
            closing = self._event("reasoning_text.done", **at, text=part["text"])
            closing += self._event("content_part.done", **at, part=part)
        return opening, pieces, closing

    def _message_events(self, place: dict[str, Any], part: dict[str, Any]) -> tuple[bytes, list[bytes], bytes]:
        at = {**place, "content_index": 0}
        field = "refusal" if part["type"] == "refusal" else "text"
        opening = self._event("content_part.added", **at, part={**part, field: "", **_no_logprobs(part)})
        texts = Reply(text=part["refusal"]).chunks() if field == "refusal" else self.pieces
        pieces = []
        for piece in texts:
            probable = {"logprobs": [self._logprob(piece)] if self.request.logprobs else []} if field == "text" else {}
            pieces.append(self._event(f"{part['type']}.delta", **at, delta=piece, **probable))
        told = {"logprobs": part["logprobs"]} if field == "text" else {}
        closing = self._event(f"{part['type']}.done", **at, **{field: part[field]}, **told)
        return opening, pieces, closing + self._event("content_part.done", **at, part=part)

    def _call_events(self, place: dict[str, Any], item: dict[str, Any]) -> tuple[bytes, list[bytes], bytes]:
        name, arguments = "function_call_arguments", item["arguments"]
        cut = [] if self.quirks.whole_calls else [arguments[i : i + 8] for i in range(0, len(arguments), 8)]
        pieces = [self._event(f"{name}.delta", **place, delta=piece) for piece in cut]
        return b"", pieces, self._event(f"{name}.done", **place, arguments=arguments)

    def _event(self, kind: str, /, **fields: Any) -> bytes:
        return self._numbered({"type": f"response.{kind}", **fields})

    def _numbered(self, event: dict[str, Any]) -> bytes:
        self._sequence += 1
        line = b"\r\n" if self.quirks.crlf else b"\n"
        told = b"event: " + str(event["type"]).encode() + line
        return told + self._data(_encode({**event, "sequence_number": self._sequence - 1}))


def _begun(item: dict[str, Any]) -> dict[str, Any]:
    """An item as it is announced."""
    if item["type"] == "reasoning":
        return {"id": item["id"], "type": "reasoning", "summary": []}
    empty: dict[str, Any] = {"content": []} if item["type"] == "message" else {"arguments": ""}
    return {**item, **empty, "status": "in_progress"}


def _no_logprobs(part: dict[str, Any]) -> dict[str, Any]:
    return {"logprobs": []} if "logprobs" in part else {}
