"""The stream of a chat completion: from items and deltas to encoded chunks.

Chunks have no numbers on the wire and no stream of them is ever read again. Those of a stored completion are kept until
it has ended, for one purpose: that a run which a crash cut off goes on where its reader saw it end. For that, comments
in such a stream say which item begins; every reader of server-sent events skips them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from stateroom import ids
from stateroom.journal.entries import Frame, Item, OpenItem, RunView, Usage
from stateroom.wire.chat_completions import (
    CALLS,
    ENCODE,
    finish_reason,
    head_of,
    logprobs_of,
    style_of,
    usage_object,
)
from stateroom.wire.chat_completions_messages import reasoning_text, refused, spoken
from stateroom.wire.sse import escape_line_breaks

ERROR_HEAD: Final = b'data: {"error":'
"""Begins the chunk that says why there is no answer."""

_MARK: Final = b": item "
_PADDING_BLOCK: Final = 16
_SHOWN: Final = frozenset(("message", "reasoning", *CALLS))


class ChatRenderer:
    """Turns what happens to one run into its chunks. Implements `runtime.surface.Renderer`."""

    __slots__ = (
        "_begun",
        "_calls",
        "_first",
        "_head",
        "_legacy",
        "_marks",
        "_next",
        "_obfuscate",
        "_open",
        "_out",
        "_part",
        "_tail",
        "_usage",
        "is_mute",
    )

    def __init__(self, view: RunView, *, obfuscate: bool = False, mute: bool = False) -> None:
        style = style_of(view)
        self._head = b"data: " + ENCODE(head_of(view, "chat.completion.chunk"))[:-1]
        self._open = self._head + b',"choices":[{"index":%d,"delta":' % style.choice
        self._tail = b',"finish_reason":null}]}\n\n'
        self._legacy = style.legacy
        self._usage = style.usage
        self._obfuscate = obfuscate
        self._marks = view.stored
        self.is_mute = mute
        """Nobody can read the rest of a stream that was cut off."""
        self._begun = False
        self._calls: dict[int, tuple[int, str]] = {}
        """By output index: position among the calls, and type."""
        self._out: list[bytes] = []
        self._first = 0
        self._next = 0
        self._part = (-1, -1)
        """Item and number of the summary that was last told of."""

    def begin(self, view: RunView) -> None:
        """The run exists. The first chunk waits until it is known what it begins."""

    def proceed(self, view: RunView) -> None:
        """The run goes on."""

    def item_opened(self, index: int, item_id: str, item: Item) -> None:
        """An output item begins. Calls are announced, everything else waits for its first piece."""
        kind = item.get("type", "message")
        if kind not in _SHOWN:
            return
        if self._marks:
            self._out.append(b"%b%d %b\n\n" % (_MARK, index, kind.encode()))
        if kind in CALLS:
            self._begin(None)
            position = len(self._calls)
            self._calls[index] = (position, kind)
            self._chunk(self._opening(position, item))

    def text(self, index: int, delta: str, logprobs: list[Any] | None = None) -> None:
        """More visible text."""
        if not self._begun:
            self._begin("")
        if logprobs:
            encoded = ENCODE({"content": logprobs, "refusal": None})
            self._write(b'{"content":%b},"logprobs":%b' % (ENCODE(delta), encoded), len(delta))
        elif delta:
            self._write(b'{"content":%b}' % ENCODE(delta), len(delta))

    def refusal(self, index: int, delta: str) -> None:
        """More of a refusal."""
        self._begin(None)
        self._chunk({"refusal": delta})

    def reasoning(self, index: int, delta: str) -> None:
        """More of the reasoning."""
        self._begin("")
        self._write(b'{"reasoning_content":%b}' % ENCODE(delta), len(delta))

    def summary(self, index: int, part: int, delta: str) -> None:
        """More of what a server tells in the place of its model's reasoning."""
        again = self._part[0] == index and self._part[1] != part
        self._part = (index, part)
        self.reasoning(index, "\n\n" + delta if again else delta)

    def arguments(self, index: int, delta: str) -> None:
        """More of a call's arguments, or of a custom tool's input."""
        position, kind = self._calls[index]
        if self._legacy:
            self._chunk({"function_call": {"arguments": delta}})
        elif kind == "custom_tool_call":
            self._chunk({"tool_calls": [{"index": position, "custom": {"input": delta}}]})
        else:
            self._chunk({"tool_calls": [{"index": position, "function": {"arguments": delta}}]})

    def called(self, index: int, item: Item) -> None:
        """A call that is carried out here: nobody is told of it."""

    def printed(self, index: int, command: int, stdout: str, stderr: str) -> None:
        """The same for what a command says."""

    def item_closed(self, index: int, item_id: str, item: Item) -> None:
        """An item is finished: what only comes with its end is told."""
        if index in self._calls and item.get("extra"):
            self._chunk({"tool_calls": [{**item["extra"], "index": self._calls[index][0]}]})

    def item_abandoned(self, index: int) -> None:
        """An item was cut off for good by a crash, and its reader with it."""

    def end(self, view: RunView) -> None:
        """The run is over: why, and what it used."""
        if view.status in ("failed", "cancelled"):
            self._put(ENCODE({"error": _error(view)}))
            return
        self._begin("")
        self._tail = b',"finish_reason":%b}]}\n\n' % ENCODE(finish_reason(view))
        self._write(b"{}", 0)
        if self._usage:
            self._put(self._head[6:] + b',"choices":[],"usage":%b}' % ENCODE(usage_object([view.usage or Usage()])))

    def take(self) -> Frame | None:
        """Everything since the last call; None when nothing happened."""
        if self.is_mute:
            self._out.clear()
        if self._next == self._first or not self._out:
            return None  # a mark alone waits for the chunk that it speaks of
        frame = Frame(self._first, self._next - 1, escape_line_breaks(b"".join(self._out)))
        self._out.clear()
        self._first = self._next
        return frame

    @classmethod
    def restore(cls, view: RunView, frames: Sequence[Frame]) -> tuple[ChatRenderer, list[OpenItem]]:
        """A renderer for the rest of a stream, which nobody will read, and the items that were open in its frames."""
        finished = {output.index for output in view.output}
        opened = [item for item in _items_of(frames) if item.index not in finished]
        return cls(view, mute=True), opened

    def _begin(self, content: str | None) -> None:
        """The first chunk says who speaks."""
        if not self._begun:
            self._begun = True
            self._chunk({"role": "assistant", "content": content})

    def _opening(self, position: int, item: Item) -> dict[str, Any]:
        name = item["name"]
        if self._legacy:
            return {"function_call": {"name": name, "arguments": ""}}
        if item["type"] == "custom_tool_call":
            call = {"type": "custom", "custom": {"name": name, "input": ""}}
        else:
            call = {"type": "function", "function": {"name": name, "arguments": ""}}
        return {"tool_calls": [{"index": position, "id": item["call_id"], **call}]}

    def _chunk(self, delta: dict[str, Any]) -> None:
        encoded = ENCODE(delta)
        self._write(encoded, len(encoded))

    def _write(self, delta: bytes, size: int) -> None:
        """A chunk. `delta` may go on with fields of the choice."""
        self._next += 1
        if self._obfuscate:
            padding = ids.random_padding(-size % _PADDING_BLOCK).encode()
            self._out.append(b'%b%b%b,"obfuscation":"%b"}\n\n' % (self._open, delta, self._tail[:-3], padding))
        else:
            self._out.append(b"%b%b%b" % (self._open, delta, self._tail))

    def _put(self, data: bytes) -> None:
        self._next += 1
        self._out.append(b"data: %b\n\n" % data)


def is_cut_off(renderer: object) -> bool:
    """Whether this is the renderer of a stream that a crash cut off, whose rest nobody can read."""
    return isinstance(renderer, ChatRenderer) and renderer.is_mute


def render_chunks(view: RunView) -> bytes:
    """The stream of a run that has ended, from what it said: each item at once."""
    renderer = ChatRenderer(msgspec.structs.replace(view, stored=False))
    for output in view.output:
        _tell(renderer, output.index, output.item)
    renderer.end(view)
    frame = renderer.take()
    return frame.body if frame is not None else b""


def _tell(renderer: ChatRenderer, index: int, item: Item) -> None:
    kind = item.get("type", "message")
    renderer.item_opened(index, "", item)
    if kind == "reasoning":
        renderer.reasoning(index, reasoning_text(item))
    elif kind == "message":
        renderer.text(index, spoken(item), logprobs_of(item))
        if refusal := refused(item):
            renderer.refusal(index, refusal)
    elif kind in CALLS:
        renderer.arguments(index, item.get("input") or item.get("arguments") or "")
    renderer.item_closed(index, "", item)


def render_usage_chunk(view: RunView, usages: Sequence[Usage]) -> bytes:
    """The last chunk of a completion with several choices."""
    shown = {**head_of(view, "chat.completion.chunk"), "choices": [], "usage": usage_object(usages)}
    return b"data: %b\n\n" % ENCODE(shown)


def _error(view: RunView) -> dict[str, Any]:
    """Why a run has no answer, in the shape of every error."""
    if view.status == "cancelled":
        return {
            "message": "The completion was deleted while it was being made.",
            "type": "invalid_request_error",
            "param": None,
            "code": "completion_not_found",
        }
    error = view.error or {}
    return {
        "message": (error.get("message") or "The run failed.").replace("`text.format`", "`response_format`"),
        "type": error.get("type") or "server_error",
        "param": error.get("param"),
        "code": error.get("code") or "server_error",
    }


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] = []
    function_call: dict[str, Any] = {}


class _Choice(msgspec.Struct):
    delta: _Delta


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []


_DECODE: Final = msgspec.json.Decoder(_Chunk).decode


def _items_of(frames: Sequence[Frame]) -> Iterator[OpenItem]:
    """The items that were begun in a stream, with what was shown of each."""
    kinds: dict[int, str] = {}
    pieces: dict[int, list[str]] = {}
    latest: dict[str, int] = {}
    calls: list[int] = []
    for block in b"".join(frame.body for frame in frames).split(b"\n\n"):
        if block.startswith(_MARK):
            number, _, kind = block.removeprefix(_MARK).decode().partition(" ")
            index = int(number)
            kinds[index], pieces[index], latest[kind] = kind, [], index
            if kind in CALLS:
                calls.append(index)
        elif block.startswith(b"data: {"):
            for choice in _DECODE(block[6:]).choices:
                for index, text in _pieces(choice.delta, latest, calls):
                    pieces[index].append(text)
    for index in sorted(kinds):
        yield OpenItem(index, kinds[index], "".join(pieces[index]))


def _pieces(delta: _Delta, latest: dict[str, int], calls: list[int]) -> Iterator[tuple[int, str]]:
    if delta.content and "message" in latest:
        yield latest["message"], delta.content
    if delta.reasoning_content and "reasoning" in latest:
        yield latest["reasoning"], delta.reasoning_content
    if delta.function_call.get("arguments") and calls:
        yield calls[-1], delta.function_call["arguments"]
    for call in delta.tool_calls:
        held = call.get("function") or call.get("custom") or {}
        position = call.get("index", 0)
        if position < len(calls):
            yield calls[position], held.get("arguments") or held.get("input") or ""
