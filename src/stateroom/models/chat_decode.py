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
from stateroom.models.chat_errors import from_stream, told
from stateroom.models.event_bytes import BAD_ANSWER, DONE, EventBytes, nonsense, payloads

REASONING_FIELDS: Final = ("reasoning", "reasoning_content", "thinking")

_DONE: Final = (b"data: [DONE]\n\n", b"data:[DONE]\n\n")

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
        self.thinking = False
        """Never: what a chat server's model thinks comes in pieces, or cannot be told from waiting."""
        self.finish = ""
        """The finish reason, once it has come."""
        self.failure: BackendError | None = None
        """An error that came inside the stream, behind the deltas that were given out."""
        self.reasoning_field = ""
        """The field in which reasoning came."""
        self._events = EventBytes(server)
        self._calls = ToolCalls()
        self._usage = b""
        self._timings = b""

    def feed(self, data: bytes) -> list[Delta]:
        """The deltas of all events that these bytes complete."""
        whole = self._events.take(data)
        if not whole or self.done or self.failure is not None:
            return []
        chunks = self._plain(whole)
        deltas = self._deltas(self._by_line(whole) if chunks is None else chunks)
        self._events.watch(len(whole), told=bool(deltas))
        return deltas

    def whole(self, body: bytes) -> list[Delta]:
        """The deltas of a whole answer. Raises BackendError."""
        try:
            chunk = _decode_chunk(body)
        except (ValueError, RecursionError) as error:
            raise self._nonsense(body) from error
        deltas = self._deltas([chunk])
        if self.failure is None and not chunk.choices:
            raise BackendFailed(f"{self.server} sent an answer without a choice.", code=BAD_ANSWER)
        self.done = True
        return deltas + self.end()

    def end(self) -> list[Delta]:
        """The last deltas, when the server has ended the stream. Raises BackendError when it broke off."""
        deltas = self.feed(b"\n\n") if self._events.pending else []
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
        """The chunks of events that are not plain."""
        chunks: list[_Chunk] = []
        for payload in payloads(whole):
            if payload == DONE:
                self.done = True
                break
            try:
                chunks.append(_decode_chunk(payload))
            except (ValueError, RecursionError):
                chunks.append(_Chunk(error=self._nonsense(payload)))
                break
        return chunks

    def _nonsense(self, payload: bytes) -> BackendFailed:
        return nonsense(self.server, self.key, payload, "chat completion")

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
    return read_logprobs(value.get("content")) if isinstance(value, dict) else None


def read_logprobs(content: Any) -> list[Any] | None:
    """Log probabilities in the shape of the Responses API: `{token, bytes, logprob, top_logprobs}`."""
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
    if not (read_count(usage, "prompt_tokens") or read_count(usage, "completion_tokens")):
        return None
    cached = (
        read_count(usage.get("prompt_tokens_details"), "cached_tokens")
        or read_count(usage, "prompt_cache_hit_tokens")
        or read_count(timings, "cache_n")
    )
    return Usage(
        input=read_count(usage, "prompt_tokens"),
        output=read_count(usage, "completion_tokens"),
        cached=cached,
        reasoning=read_count(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def read_count(holder: Any, name: str) -> int:
    """A number of tokens in what a server sent; 0 for anything else."""
    value = holder.get(name) if isinstance(holder, dict) else None
    return max(0, int(value)) if isinstance(value, int | float) and abs(value) < 2**53 else 0
