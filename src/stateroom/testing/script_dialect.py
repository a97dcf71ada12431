"""How the scripted model writes an answer: chat completion chunks or one object, with the quirks of real servers.

Pure: from a reply to bytes. Which server has which quirk is in docs/why/backends.md.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from stateroom.testing.script import Call, ChatRequest, Reply
from stateroom.testing.script_embeddings import Ways

_encode = msgspec.json.Encoder().encode


class Quirks(msgspec.Struct, frozen=True):
    """In what the server differs from OpenAI's; the defaults are the plain dialect."""

    reasoning_field: str = "reasoning_content"
    usage: Literal["asked", "every", "finish", "none"] = "asked"
    """asked: in a chunk without choices, when the client asks; finish: in the chunk with the finish reason."""
    crlf: bool = False
    space: bool = True
    """Whether `data:` is followed by a space."""
    comments: bool = False
    """Comment lines between the events."""
    done: bool = True
    """Whether the stream ends in [DONE]."""
    finish: bool = True
    """Whether a finish reason is given."""
    stop_after_calls: bool = False
    """finish_reason is stop after tool calls."""
    whole_calls: bool = False
    """Each call in one delta."""
    interleave: bool = False
    """Pieces of parallel calls alternate."""
    ids: bool = True
    dict_arguments: bool = False
    zero_index: bool = False
    """Every call has index 0."""
    legacy_call: bool = False
    """The old `function_call` in place of `tool_calls`."""
    content_parts: bool = False
    """Text is a list of parts."""
    hidden_reasoning: bool = False
    """Responses: reasoning is sealed and not shown, as OpenAI's is."""
    whole_items: bool = False
    """Responses: items come without deltas, when they are done."""
    split: int = 0
    """Bytes a write; 0: whole events."""
    embeddings: Ways = "both"


class Answer:
    """One reply to one request, ready to be written."""

    def __init__(self, reply: Reply, request: ChatRequest, quirks: Quirks, number: int) -> None:
        self.reply = reply
        self.request = request
        self.quirks = quirks
        self.number = number
        self.pieces = reply.chunks()
        self.finish = reply.finish or ("tool_calls" if reply.calls and not quirks.stop_after_calls else "stop")
        self._cut()

    def _cut(self) -> None:
        """Leave out what a prefill has already said, and what the token limit forbids."""
        prefix = self.request.prefill
        if prefix and "".join(self.pieces).startswith(prefix):
            left = len(prefix)
            while self.pieces and left >= len(self.pieces[0]):
                left -= len(self.pieces.pop(0))
            if left:
                self.pieces[0] = self.pieces[0][left:]
        limit = self.request.max_completion_tokens or self.request.max_tokens
        if limit is not None and len(self.pieces) > limit:
            del self.pieces[limit:]
            self.finish = "length"

    def whole(self) -> bytes:
        """The answer as one object."""
        reply = self.reply
        text: Any = "".join(self.pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not reply.calls else None}
        if self.quirks.content_parts and text:
            message["content"] = [{"type": "text", "text": text}]
        if self._reasons():
            message[self.quirks.reasoning_field] = reply.reasoning
        if reply.refusal:
            message["refusal"] = reply.refusal
        if reply.calls and self.quirks.legacy_call:
            message["function_call"] = {"name": reply.calls[0].name, "arguments": reply.calls[0].arguments}
        elif reply.calls:
            message["tool_calls"] = [self._call(i, call, call.arguments) for i, call in enumerate(reply.calls)]
        choice = {"index": 0, "message": message, "finish_reason": self.finish if self.quirks.finish else None}
        if self.request.logprobs:
            choice["logprobs"] = {"content": [self._logprob(piece) for piece in self.pieces]}
        body = {**self._head("chat.completion"), "choices": [choice]}
        if self.quirks.usage != "none":
            body["usage"] = self.usage()
        return _encode(body)

    def events(self) -> list[bytes]:
        """The answer as server-sent events, the first of which gives the role only."""
        deltas: list[dict[str, Any]] = []
        if self._reasons():
            deltas += [{self.quirks.reasoning_field: piece} for piece in Reply(text=self.reply.reasoning).chunks()]
        if self.reply.refusal:
            deltas += [{"refusal": piece} for piece in Reply(text=self.reply.refusal).chunks()]
        before, between, after = self._frame()
        every = b',"usage":' + _encode(self.usage()) if self.quirks.usage == "every" else b""
        ending = between + every + after
        events = [before + b'{"role":"assistant","content":null}' + ending]
        events += [before + _encode(delta) + ending for delta in deltas]
        events += [before + self._text(piece) + ending for piece in self.pieces]
        events += [before + _encode(delta) + ending for delta in self._call_deltas()]
        if self.quirks.comments:
            events = [b": keep-alive" + self._end() + event for event in events]
        return events

    def closing(self) -> list[bytes]:
        """The last events: finish reason, usage, [DONE]."""
        quirks = self.quirks
        before, between, after = self._frame(finish=self.finish if quirks.finish else None)
        usage = b',"usage":' + _encode(self.usage())
        events = [before + b"{}" + between + (usage if quirks.usage in ("finish", "every") else b"") + after]
        if quirks.usage == "asked" and self.request.include_usage:
            body = {**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage()}
            events.append(self._data(_encode(body)))
        if quirks.done:
            events.append(self._data(b"[DONE]"))
        return events

    def error_event(self) -> bytes:
        return self._data(_encode({"error": self.reply.error or {"message": "scripted failure", "code": 500}}))

    def usage(self) -> dict[str, Any]:
        """Counts that depend on the request and the reply alone."""
        if self.reply.usage is not None:
            return self.reply.usage
        reasoning = len(Reply(text=self.reply.reasoning).chunks()) if self._reasons() else 0
        prompt = self.request.size // 4 + 1
        completion = len(self.pieces) + reasoning + sum(8 for _ in self.reply.calls)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": reasoning},
        }

    def _reasons(self) -> bool:
        return bool(self.reply.reasoning) and not self.request.prefill

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.number}",
            "object": kind,
            "created": 1_700_000_000,
            "model": self.request.model,
        }

    def _end(self) -> bytes:
        return b"\r\n\r\n" if self.quirks.crlf else b"\n\n"

    def _data(self, payload: bytes) -> bytes:
        return (b"data: " if self.quirks.space else b"data:") + payload + self._end()

    def _frame(self, finish: str | None = None) -> tuple[bytes, bytes, bytes]:
        """What stands before a delta, between it and the usage, and after that."""
        head = _encode(self._head("chat.completion.chunk"))[:-1]
        start = b"data: " if self.quirks.space else b"data:"
        before = start + head + b',"choices":[{"index":0,"delta":'
        return before, b',"finish_reason":' + _encode(finish) + b"}]", b"}" + self._end()

    def _text(self, piece: str) -> bytes:
        content: Any = [{"type": "text", "text": piece}] if self.quirks.content_parts else piece
        delta = b'{"content":' + _encode(content) + b"}"
        if self.request.logprobs:
            delta += b',"logprobs":' + _encode({"content": [self._logprob(piece)]})
        return delta

    def _logprob(self, piece: str) -> dict[str, Any]:
        one = {"token": piece, "logprob": -0.25, "bytes": list(piece.encode())}
        return {**one, "top_logprobs": [one] * (self.request.top_logprobs or 0)}

    def _call(self, index: int, call: Call, arguments: str | None) -> dict[str, Any]:
        """A call, or its first piece when it goes without arguments."""
        value: Any = arguments
        if self.quirks.dict_arguments and arguments:
            value = msgspec.json.decode(arguments)
        made: dict[str, Any] = {"index": 0 if self.quirks.zero_index else index, "type": "function"}
        if self.quirks.ids:
            made["id"] = f"call_{self.number}_{index}"
        return {**made, **call.extra, "function": {"name": call.name, "arguments": value}}

    def _call_deltas(self) -> list[dict[str, Any]]:
        calls = self.reply.calls
        quirks = self.quirks
        if quirks.legacy_call:
            return [
                delta
                for call in calls[:1]
                for delta in (
                    {"function_call": {"name": call.name, "arguments": ""}},
                    {"function_call": {"arguments": call.arguments}},
                )
            ]
        if quirks.whole_calls or quirks.dict_arguments:
            return [{"tool_calls": [self._call(i, call, call.arguments)]} for i, call in enumerate(calls)]
        streams = [[{"tool_calls": [self._call(i, call, "")]}, *self._pieces(i, call)] for i, call in enumerate(calls)]
        if not quirks.interleave:
            return [delta for stream in streams for delta in stream]
        longest = max((len(stream) for stream in streams), default=0)
        return [stream[i] for i in range(longest) for stream in streams if i < len(stream)]

    def _pieces(self, index: int, call: Call) -> list[dict[str, Any]]:
        index = 0 if self.quirks.zero_index else index
        pieces = [call.arguments[i : i + 8] for i in range(0, len(call.arguments), 8)]
        return [{"tool_calls": [{"index": index, "function": {"arguments": piece}}]} for piece in pieces]
