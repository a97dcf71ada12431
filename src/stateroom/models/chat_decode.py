"""A chat server's answer as deltas: the bytes of a stream as they come in, or a whole answer. Pure.

All complete events of a read are decoded in one go; only what is not plain `data:` events with JSON goes through the
line by line reader. Nothing here waits, retries or knows of HTTP.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from stateroom.errors import BackendError, BackendFailed
from stateroom.journal.entries import Usage
from stateroom.models.backend import Delta, Finished, ReasoningDelta, RefusalDelta, TextDelta
from stateroom.models.chat_calls import ToolCalls
from stateroom.models.chat_errors import from_stream, told, without_key

EVENT_LIMIT: Final = 16 * 1024 * 1024
"""Bytes of one event."""

REASONING_FIELDS: Final = ("reasoning", "reasoning_content", "thinking")

QUIET_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of a stream that may go by without a delta coming of them."""

_DONE: Final = (b"data: [DONE]\n\n", b"data:[DONE]\n\n")
_BAD: Final = "backend_bad_answer"

_REASONS: Final = {
    "length": "length",
    "max_tokens": "length",
    "max_length": "length",
    "model_length": "length",
    "content_filter": "content_filter",
    "safety": "content_filter",
    "recitation": "content_filter",
    "prohibited_content": "content_filter",
    "blocklist": "content_filter",
}
_BROKEN: Final = frozenset({"error", "abort", "aborted", "cancelled", "unknown_error"})


class _Message(msgspec.Struct, gc=False):
    """A delta of a chunk, or the message of a whole answer. Loosely typed: servers differ in what they put there."""

    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    thinking: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: Any = None
    logprobs: Any = None


class _Chunk(msgspec.Struct, gc=False):
    """A chunk of a stream, a whole answer, or an error in the place of one."""

    choices: list[_Choice] | None = None
    usage: msgspec.Raw = msgspec.Raw()
    """Decoded once, at the end: some servers send it with every chunk."""
    error: Any = None
    timings: msgspec.Raw = msgspec.Raw()
    object: Any = None
    message: Any = None
    type: Any = None
    code: Any = None


_decode_chunks = msgspec.json.Decoder(list[_Chunk]).decode
_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class ChatDecoder:
    """Decodes one answer."""

    def __init__(self, *, server: str, key: str | None = None) -> None:
        self.server = server
        self.key = key
        """Kept out of messages."""
        self.done = False
        """[DONE] has come."""
        self.finish = ""
        """The finish reason, once it has come."""
        self.failure: BackendError | None = None
        """An error that came inside the stream, behind the deltas that were given out."""
        self.reasoning_field = ""
        """The field in which reasoning came."""
        self._held = bytearray()
        self._quiet = 0
        """Bytes since the last delta."""
        self._calls = ToolCalls()
        self._usage = b""
        self._timings = b""

    def feed(self, data: bytes) -> list[Delta]:
        """The deltas of all events that these bytes complete."""
        whole = self._complete(data)
        if not whole or self.done or self.failure is not None:
            return []
        if b"\r" in whole:
            whole = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        chunks = self._plain(whole)
        deltas = self._deltas(self._by_line(whole) if chunks is None else chunks)
        self._quiet = 0 if deltas else self._quiet + len(whole)
        if self._quiet > QUIET_LIMIT:
            raise BackendFailed(f"{self.server} sent {QUIET_LIMIT} bytes without saying anything.", code=_BAD)
        return deltas

    def whole(self, body: bytes) -> list[Delta]:
        """The deltas of a whole answer. Raises BackendError."""
        try:
            chunk = _decode_chunk(body)
        except (ValueError, RecursionError) as error:
            raise self._nonsense(body) from error
        deltas = self._deltas([chunk])
        if self.failure is None and not chunk.choices:
            raise BackendFailed(f"{self.server} sent an answer without a choice.", code=_BAD)
        self.done = True
        return deltas + self.end()

    def end(self) -> list[Delta]:
        """The last deltas, when the server has ended the stream. Raises BackendError when it broke off."""
        deltas = self.feed(b"\n\n") if self._held else []
        if self.failure is not None:
            raise self.failure
        if self.finish in _BROKEN:
            raise BackendFailed(f"{self.server} gave up on the answer (finish_reason {self.finish}).")
        if not self.done and not self.finish:
            raise BackendFailed(f"{self.server} broke off before the answer was complete.")
        deltas += self._calls.end()
        deltas.append(Finished(_REASONS.get(self.finish, "stop"), _usage(self._usage, self._timings)))
        return deltas

    # From bytes to chunks.

    def _complete(self, data: bytes) -> bytes:
        """What is complete up to its last blank line; the rest is held back."""
        held = self._held
        if held:
            start = max(0, len(held) - 3)
            held += data
            cut = _boundary(held, start)
            whole = bytes(held[:cut])
            del held[:cut]
        else:
            cut = _boundary(data, 0)
            if cut == len(data):
                return data
            held += data[cut:]
            whole = data[:cut]
        if len(held) > EVENT_LIMIT:
            raise BackendFailed(f"{self.server} sent an event of more than {EVENT_LIMIT} bytes.", code=_BAD)
        return whole

    def _plain(self, whole: bytes) -> list[_Chunk] | None:
        """All chunks at once, when there are only `data:` lines with an object each; None otherwise."""
        if not whole.startswith(b"data:"):
            return None
        done = whole.endswith(_DONE)
        if done:
            whole = whole[: whole.rindex(b"data:")]
            if whole and not whole.endswith(b"\n\n"):
                return None
        try:
            chunks = _decode_chunks(b"[" + whole[5:-2].replace(b"\n\ndata:", b",") + b"]")
        except (ValueError, RecursionError):
            return None
        self.done = done
        return chunks

    def _by_line(self, whole: bytes) -> list[_Chunk]:
        """The chunks by the rules of server-sent events: comments, other fields, data over several lines."""
        chunks: list[_Chunk] = []
        for event in whole.split(b"\n\n"):
            data: list[bytes] = []
            for line in event.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
                field, _, value = line.partition(b":")
                if field in (b"data", b"error"):
                    data.append(value.removeprefix(b" "))
                    if field == b"error":
                        data[-1] = b'{"error":' + data[-1] + b"}"
            payload = b"\n".join(data).strip()
            if payload == b"[DONE]":
                self.done = True
                break
            if payload:
                try:
                    chunks.append(_decode_chunk(payload))
                except (ValueError, RecursionError):
                    chunks.append(_Chunk(error=self._nonsense(payload)))
                    break
        return chunks

    def _nonsense(self, payload: bytes) -> BackendFailed:
        excerpt = without_key(payload[:8192].decode("utf-8", "replace"), self.key)[:200]
        return BackendFailed(f"{self.server} answered something that is no chat completion: {excerpt}", code=_BAD)

    # From chunks to deltas.

    def _deltas(self, chunks: list[_Chunk]) -> list[Delta]:
        deltas: list[Delta] = []
        add = deltas.append
        for chunk in chunks:
            if chunk.choices:
                choice = chunk.choices[0]
                said = choice.delta if choice.delta is not None else choice.message
                if said is not None:
                    if said.reasoning or said.reasoning_content or said.thinking:
                        self._add_reasoning(said, deltas)
                    content = said.content
                    if content:
                        if type(content) is str:
                            logprobs = choice.logprobs
                            add(TextDelta(content, None if logprobs is None else _logprobs(logprobs)))
                        else:
                            _add_parts(content, deltas)
                    if said.refusal and type(said.refusal) is str:
                        add(RefusalDelta(said.refusal))
                    if said.tool_calls:
                        deltas += self._calls.add(said.tool_calls)
                    if said.function_call:
                        deltas += self._calls.add_legacy(said.function_call)
                if choice.finish_reason:
                    self.finish = str(choice.finish_reason).lower()
            if len(chunk.usage) > 4:
                self._usage = bytes(chunk.usage)
                self._timings = bytes(chunk.timings)
            if chunk.error or (not chunk.choices and (chunk.object == "error" or chunk.type == "error")):
                self.failure = self._failed(chunk)
                break
        return deltas

    def _failed(self, chunk: _Chunk) -> BackendError:
        if isinstance(chunk.error, BackendError):
            return chunk.error
        plain = {"message": chunk.message, "type": chunk.type, "code": chunk.code}
        return from_stream(told({"error": chunk.error or plain}, self.key), server=self.server, key=self.key)

    def _add_reasoning(self, said: _Message, deltas: list[Delta]) -> None:
        for field in REASONING_FIELDS:
            text = getattr(said, field)
            if text and type(text) is str:
                self.reasoning_field = field
                deltas.append(ReasoningDelta(text))
                return


def _boundary(data: bytes | bytearray, start: int) -> int:
    """The end of the last blank line from `start` on; 0 when there is none."""
    cut = data.rfind(b"\n\n", start) + 2
    if data.find(b"\r", start) >= 0:
        cut = max(cut, data.rfind(b"\n\r\n", start) + 3, data.rfind(b"\r\r", start) + 2)
        return cut if cut > 2 else 0
    return cut if cut > 1 else 0


def _add_parts(content: Any, deltas: list[Delta]) -> None:
    """Content that is a list of parts: texts, and thinking as some servers put it there."""
    for part in content if isinstance(content, list) else [content]:
        if not isinstance(part, dict):
            continue
        thought = part.get("thinking")
        if isinstance(thought, list):
            thought = "".join([str(one.get("text") or "") for one in thought if isinstance(one, dict)])
        if isinstance(thought, str) and thought:
            deltas.append(ReasoningDelta(thought))
        elif isinstance(part.get("text"), str) and part["text"]:
            deltas.append(TextDelta(part["text"]))
        elif isinstance(part.get("refusal"), str) and part["refusal"]:
            deltas.append(RefusalDelta(part["refusal"]))


def _logprobs(value: Any) -> list[Any] | None:
    """In the shape of the Responses API: `{token, bytes, logprob, top_logprobs}`."""
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, list) or not content:
        return None
    return [
        {**_logprob(one), "top_logprobs": _tops(one.get("top_logprobs"))} for one in content if isinstance(one, dict)
    ]


def _tops(value: Any) -> list[Any]:
    return [_logprob(top) for top in value if isinstance(top, dict)] if isinstance(value, list) else []


def _logprob(one: dict[str, Any]) -> dict[str, Any]:
    token, raw = str(one.get("token") or ""), one.get("bytes")
    return {
        "token": token,
        "bytes": raw if isinstance(raw, list) else list(token.encode()),
        "logprob": one.get("logprob") or 0.0,
    }


def _usage(raw_usage: bytes, raw_timings: bytes) -> Usage | None:
    """Token counts from `usage`; None when there is nothing usable."""
    try:
        usage = msgspec.json.decode(raw_usage or b"null")
        timings = msgspec.json.decode(raw_timings or b"null")
    except (ValueError, RecursionError):
        return None
    if not isinstance(usage, dict) or not (_count(usage, "prompt_tokens") or _count(usage, "completion_tokens")):
        return None
    cached = (
        _count(usage.get("prompt_tokens_details"), "cached_tokens")
        or _count(usage, "prompt_cache_hit_tokens")
        or _count(timings, "cache_n")
    )
    return Usage(
        input=_count(usage, "prompt_tokens"),
        output=_count(usage, "completion_tokens"),
        cached=cached,
        reasoning=_count(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _count(holder: Any, name: str) -> int:
    value = holder.get(name) if isinstance(holder, dict) else None
    return max(0, int(value)) if isinstance(value, int | float) and abs(value) < 2**53 else 0
