"""A Responses server's answer as deltas: the bytes of a stream as they come in, or a whole response. Pure.

Servers differ in how much they stream: some send no deltas, or an item's text only when the item is done, or only with
the whole response. So what came of each output item is counted, and what is missing is made up for when it ends.
Events and items that are not known are passed over.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from stateroom import ids
from stateroom.errors import BackendError, BackendFailed
from stateroom.journal.entries import Item, Usage
from stateroom.models.backend import (
    Delta,
    Finished,
    ItemDelta,
    ReasoningDelta,
    RefusalDelta,
    SummaryDelta,
    TextDelta,
    ToolCallDelta,
)
from stateroom.models.chat_decode import read_count, read_logprobs
from stateroom.models.chat_errors import Told, from_stream, told
from stateroom.models.event_bytes import DONE, EventBytes, nonsense, payloads

PASSED_ON: Final = frozenset(
    {
        "code_interpreter_call",
        "compaction",
        "file_search_call",
        "image_generation_call",
        "mcp_call",
        "mcp_list_tools",
        "program",
        "program_output",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    }
)
"""Types of items that tell what the server itself did. They ask nothing of anybody, and go back to it as they came."""

_ENDINGS: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_STATUS: Final = {"rate_limit_exceeded": 429, "backend_busy": 429, "invalid_prompt": 400, "bio_policy": 400}
"""HTTP statuses for codes of errors inside a stream; what begins with `invalid_` is the caller's fault as well."""

_CALL_FIELDS: Final = frozenset(
    {"id", "type", "status", "call_id", "name", "arguments", "namespace", "caller", "created_by", "async"}
)

_encode = msgspec.json.Encoder().encode


class _Event(msgspec.Struct, gc=False):
    """An event, loosely typed: servers differ in what they put there."""

    type: str | None = None
    delta: Any = None
    output_index: Any = None
    summary_index: Any = None
    logprobs: Any = None
    item: Any = None
    response: Any = None
    error: Any = None
    code: Any = None
    message: Any = None
    param: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode


class _Given:
    """What has been given out of one output item."""

    __slots__ = ("call_id", "done", "id", "index", "key", "kind", "refusal", "summaries", "text")

    def __init__(self, kind: str, index: int, key: int) -> None:
        self.kind = kind
        self.index = index
        """Its output index, if the server gives one to each; some always give 0."""
        self.key = key
        """Its number among the items of this answer."""
        self.id: Any = None
        self.call_id = ""
        self.text = 0
        """Characters of its text, reasoning or arguments."""
        self.refusal = 0
        self.summaries: dict[int, int] = {}
        self.done = False


class ResponsesDecoder:
    """Decodes one answer."""

    def __init__(self, *, server: str, origin: str, key: str | None = None, limit: int | None = None) -> None:
        self.limit = limit
        """Output tokens that were asked for at most."""
        self.server = server
        self.origin = origin
        self.key = key
        """Kept out of messages."""
        self.done = False
        """The terminal event has come."""
        self.finish = ""
        """The status of the response, once it is over."""
        self.failure: BackendError | None = None
        self._events = EventBytes(server)
        self._given: dict[int, _Given] = {}
        """The latest item of each output index."""
        self._count = 0
        self._ended = 0
        self._latest: _Given | None = None
        self._reason = "stop"
        self._usage: Usage | None = None
        self._used_ids: set[str] = set()

    @property
    def thinking(self) -> bool:
        """A reasoning item is open: servers that keep the reasoning to themselves are silent meanwhile."""
        latest = self._latest
        return latest is not None and latest.kind == "reasoning" and not latest.done

    def feed(self, data: bytes) -> list[Delta]:
        """The deltas of all events that these bytes complete."""
        whole = self._events.take(data)
        if not whole or self.done or self.failure is not None:
            return []
        deltas: list[Delta] = []
        for payload in _plain(whole) or payloads(whole):
            if payload == DONE:
                continue
            try:
                event = _decode_event(payload)
            except (ValueError, RecursionError):
                self.failure = nonsense(self.server, self.key, payload, "event of a response")
                break
            if not self._event(event, deltas):
                break
        self._events.watch(len(whole), told=bool(deltas))
        return deltas

    def whole(self, body: bytes) -> list[Delta]:
        """The deltas of a whole response. Raises BackendError."""
        try:
            response = msgspec.json.decode(body)
        except (ValueError, RecursionError) as error:
            raise nonsense(self.server, self.key, body, "response") from error
        deltas: list[Delta] = []
        if not isinstance(response, dict) or not isinstance(response.get("output"), list):
            if isinstance(response, dict) and response.get("error"):
                raise self._failed(response)
            raise nonsense(self.server, self.key, body, "response")
        self._over(response, deltas)
        return deltas + self.end()

    def end(self) -> list[Delta]:
        """The last deltas, when the server has ended the stream. Raises BackendError when it broke off."""
        deltas = self.feed(b"\n\n") if self._events.pending and not self.done else []
        if self.failure is not None:
            raise self.failure
        if not self.done:
            raise BackendFailed(f"{self.server} broke off before the answer was complete.")
        deltas.append(Finished(self._reason, self._usage))
        return deltas

    # From events to deltas.

    def _event(self, event: _Event, deltas: list[Delta]) -> bool:
        """Whether anything is to come after this event."""
        kind, delta = event.type, event.delta
        if type(delta) is str:
            if delta:
                self._delta(kind, delta, event, deltas)
        elif kind == "response.output_item.added":
            if isinstance(event.item, dict):
                self._begin(self._index(event), event.item, deltas)
        elif kind == "response.output_item.done":
            if isinstance(event.item, dict):
                self._end(self._index(event), event.item, deltas)
        elif kind in _ENDINGS:
            response = event.response if isinstance(event.response, dict) else {}
            self._over({"status": kind.removeprefix("response."), **response}, deltas)
        elif kind == "error" or event.error:
            plain = {"message": event.message, "code": event.code, "param": event.param}
            self.failure = self._failed({"error": event.error or plain})
        return not self.done and self.failure is None

    def _delta(self, kind: Any, delta: str, event: _Event, deltas: list[Delta]) -> None:
        if kind == "response.output_text.delta":
            given = self._of(event, "message")
            given.text += len(delta)
            logprobs = event.logprobs
            deltas.append(TextDelta(delta, read_logprobs(logprobs) if logprobs else None))
        elif kind == "response.function_call_arguments.delta":
            given = self._of(event, "function_call")
            given.text += len(delta)
            if given.call_id:
                deltas.append(ToolCallDelta(given.key, arguments=delta))
        elif kind == "response.reasoning_text.delta":
            given = self._of(event, "reasoning")
            given.text += len(delta)
            deltas.append(ReasoningDelta(delta))
        elif kind == "response.reasoning_summary_text.delta":
            given = self._of(event, "reasoning")
            part = _number(event.summary_index)
            given.summaries[part] = given.summaries.get(part, 0) + len(delta)
            deltas.append(SummaryDelta(delta, part))
        elif kind == "response.refusal.delta":
            given = self._of(event, "message")
            given.refusal += len(delta)
            deltas.append(RefusalDelta(delta))

    def _index(self, event: _Event) -> int:
        """The output index; servers that give none write one item after the other."""
        index = event.output_index
        if isinstance(index, int):
            return index
        latest = self._latest
        if event.type == "response.output_item.added" or latest is None:
            return self._count
        return latest.index

    def _of(self, event: _Event, kind: str) -> _Given:
        """The item that a delta belongs to, begun now when the server did not say that it begins."""
        index = self._index(event)
        given = self._given.get(index)
        if given is None or given.kind != kind or given.done:
            given = self._start(index, kind)
        return given

    def _start(self, index: int, kind: str) -> _Given:
        given = self._given[index] = self._latest = _Given(kind, index, self._count)
        self._count += 1
        return given

    def _begin(self, index: int, item: Item, deltas: list[Delta]) -> _Given:
        """An item begins; what a server tells of it already comes once it has ended."""
        kind = str(item.get("type"))
        given = self._start(index, kind)
        given.id = item.get("id")
        if kind == "function_call":
            self._name(given, item, deltas)
        elif kind == "reasoning":
            deltas.append(ItemDelta({"type": kind, "summary": []}, self.origin, done=False))
        elif kind == "message" and isinstance(item.get("phase"), str):
            begun = {"type": kind, "role": "assistant", "phase": item["phase"]}
            deltas.append(ItemDelta(begun, self.origin, done=False))
        return given

    def _name(self, given: _Given, item: Item, deltas: list[Delta]) -> None:
        """The first piece of a call: its id and its name."""
        name = item.get("name")
        if given.call_id or not isinstance(name, str) or not name:
            return
        call_id = item.get("call_id") or item.get("id")
        known = isinstance(call_id, str) and call_id and call_id not in self._used_ids
        given.call_id = str(call_id) if known else ids.new_id("call")
        self._used_ids.add(given.call_id)
        namespace = item.get("namespace")
        deltas.append(ToolCallDelta(given.key, given.call_id, f"{namespace}__{name}" if namespace else name))

    def _end(self, index: int, item: Item, deltas: list[Delta]) -> None:
        """An item is done: what is missing of it, and what only the finished item tells."""
        kind = item.get("type")
        given = self._given.get(index)
        if not isinstance(kind, str) or (given is not None and given.done and given.id and given.id == item.get("id")):
            return
        if given is None or given.kind != kind or given.done:
            given = self._begin(index, item, deltas)
        given.id = item.get("id")
        given.done = True
        self._ended += 1
        if kind == "message":
            self._end_message(given, item, deltas)
        elif kind == "reasoning":
            self._end_reasoning(given, item, deltas)
        elif kind == "function_call":
            extra = {name: value for name, value in item.items() if name not in _CALL_FIELDS and value is not None}
            self._end_call(given, item, _text(item.get("arguments")), extra, deltas)
        elif kind == "custom_tool_call":
            self._end_call(given, item, _encode({"input": _text(item.get("input"))}).decode(), {}, deltas)
        elif kind in PASSED_ON:
            deltas.append(ItemDelta({name: value for name, value in item.items() if value is not None}, self.origin))

    def _end_message(self, given: _Given, item: Item, deltas: list[Delta]) -> None:
        parts = [part for part in _list(item.get("content")) if isinstance(part, dict)]
        text = "".join([_text(part.get("text")) for part in parts if part.get("type") != "refusal"])
        refusal = "".join([_text(part.get("refusal")) for part in parts])
        if len(text) > given.text:
            probable = read_logprobs(parts[0].get("logprobs")) if not given.text and len(parts) == 1 else None
            deltas.append(TextDelta(text[given.text :], probable))
        if len(refusal) > given.refusal:
            deltas.append(RefusalDelta(refusal[given.refusal :]))
        phase = {"phase": item["phase"]} if isinstance(item.get("phase"), str) else {}
        deltas.append(ItemDelta({"type": "message", "role": "assistant", **phase}, self.origin))

    def _end_reasoning(self, given: _Given, item: Item, deltas: list[Delta]) -> None:
        for part, summary in enumerate(_list(item.get("summary"))):
            text, seen = _text(summary.get("text")) if isinstance(summary, dict) else "", given.summaries.get(part, 0)
            if len(text) > seen:
                deltas.append(SummaryDelta(text[seen:], part))
        content = "".join([_text(part.get("text")) for part in _list(item.get("content")) if isinstance(part, dict)])
        if len(content) > given.text:
            deltas.append(ReasoningDelta(content[given.text :]))
        deltas.append(ItemDelta(item, self.origin))

    def _end_call(self, given: _Given, item: Item, arguments: str, extra: dict[str, Any], deltas: list[Delta]) -> None:
        unnamed = not given.call_id
        self._name(given, item, deltas)
        if not given.call_id:
            return
        seen = 0 if unnamed else given.text  # pieces that came before the name were held back
        missing = arguments[seen:] if len(arguments) > seen else "" if given.text else "{}"
        if missing or extra:
            deltas.append(ToolCallDelta(given.key, arguments=missing, extra=extra or None))

    # The end.

    def _over(self, response: dict[str, Any], deltas: list[Delta]) -> None:
        status = str(response.get("status") or "completed")
        if status not in ("completed", "incomplete"):
            self.failure = self._failed(response)
            return
        if not self._ended:  # in a stream that is well-formed each item has ended by itself
            for index, item in enumerate(_list(response.get("output"))):
                if isinstance(item, dict):
                    self._end(index, item, deltas)
        self.done, self.finish = True, status
        self._usage = _usage(response.get("usage"))
        details = response.get("incomplete_details")
        if status == "incomplete":
            reason = details.get("reason") if isinstance(details, dict) else None
            self._reason = "content_filter" if reason == "content_filter" else "length"
        elif "incomplete_details" not in response and self._usage is not None and self.limit is not None:
            # Servers that leave this field out (llama.cpp) call every answer complete, also one that they cut off.
            self._reason = "length" if self._usage.output >= self.limit else "stop"

    def _failed(self, response: dict[str, Any]) -> BackendError:
        if not response.get("error"):
            text = f"{self.server} gave up on the answer (status {str(response.get('status'))[:32]})."
            return BackendFailed(text)
        error = told({"error": response["error"]}, self.key)
        return from_stream(_with_status(error), server=self.server, key=self.key)


def _with_status(error: Told) -> Told:
    if error.status:
        return error
    status = _STATUS.get(error.code, 400 if error.code.startswith("invalid_") else 0)
    return msgspec.structs.replace(error, status=status) if status else error


def _plain(whole: bytes) -> list[bytes] | None:
    """The data of the events when each is one `event:` line, or none, and one `data:` line; None otherwise."""
    found: list[bytes] = []
    if not whole.endswith(b"\n\n"):
        return None
    for event in whole[:-2].split(b"\n\n"):
        start = 0
        if event.startswith(b"event:"):
            start = event.find(b"\n") + 1
        if not event.startswith(b"data:", start) or event.find(b"\n", start) >= 0:
            return None
        found.append(event[start + 5 :].strip())
    return found


def _usage(held: Any) -> Usage | None:
    """Token counts; None when there is nothing usable."""
    if not (read_count(held, "input_tokens") or read_count(held, "output_tokens")):
        return None
    return Usage(
        input=read_count(held, "input_tokens"),
        output=read_count(held, "output_tokens"),
        cached=read_count(held.get("input_tokens_details"), "cached_tokens"),
        reasoning=read_count(held.get("output_tokens_details"), "reasoning_tokens"),
    )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else _encode(value).decode()


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
