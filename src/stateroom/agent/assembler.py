"""From a model's deltas to finished items. Pure: it tells a listener what happens and keeps what is finished.

One assembler serves one model answer. Text and reasoning items close when the answer turns to something else; tool
calls may interleave and stay open until the answer ends. An assembler may start inside an item that a crash cut off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec

from stateroom import ids
from stateroom.agent.carried import reasoning_content, to_carry
from stateroom.journal.entries import Answered, Item, ItemFinished, OpenItem, Usage, item_prefix

PIECES_MAX: Final = 500_000
"""Deltas of one answer: each becomes an event that is kept."""

CALLS_MAX: Final = 4_096
"""Calls of one answer, those that must not be made included."""

STEERED: Final = "steered"
"""Why an answer ended that the run's user interrupted."""

CUT_SHORT: Final = frozenset({"length", "content_filter", STEERED})

_OURS: Final = frozenset({"type", "summary", "content", "status"})
"""Fields of a server's reasoning item that our own holds, too, or that say nothing."""


class Listener(Protocol):
    """Who is told about every beginning, piece and end, in order. A renderer is one."""

    def item_opened(self, index: int, item_id: str, item: Item) -> None: ...
    def text(self, index: int, delta: str, logprobs: list[Any] | None) -> None: ...
    def refusal(self, index: int, delta: str) -> None: ...
    def reasoning(self, index: int, delta: str) -> None: ...
    def summary(self, index: int, part: int, delta: str) -> None: ...
    def arguments(self, index: int, delta: str) -> None: ...
    def called(self, index: int, item: Item) -> None:
        """A call is written whose item stays open until there is an outcome."""
        ...

    def item_closed(self, index: int, item_id: str, item: Item) -> None: ...


class CallShape(msgspec.Struct, frozen=True):
    """How a call to one function is written as an item."""

    build: Callable[[str, str], Item]
    """(call id, arguments) -> packed item."""
    streams: bool = True
    """Whether pieces of its arguments may be shown as they come (not when they have to be rewritten first)."""
    waits: bool = False
    """Its item holds the outcome as well, and is closed for the listener only when there is one."""
    whole: bool = False
    """Nothing of it is shown before all of it is there."""


class _Open:
    """An item that is being written."""

    def __init__(self, index: int, kind: str) -> None:
        self.index = index
        self.kind = kind
        self.pieces: list[str] = []
        self.logprobs: list[Any] = []
        self.refusal: list[str] = []
        self.call_id = ""
        self.shape: CallShape | None = None
        self.extra: dict[str, Any] | None = None
        self.summaries: list[list[str]] = []
        self.summary_part = -1
        """The server's own number of the last of them."""
        self.fields: Item = {}
        """What the server said of it beside its content."""
        self.upstream: dict[str, Any] | None = None
        """What has to go back to its server as it came."""
        self.over = False
        """Its server has ended it: what follows is another item. It is closed when that begins."""


class Assembler:
    """Builds the items of one answer of the run `key`, from output index `index` on."""

    def __init__(
        self,
        key: str,
        index: int,
        *,
        shape_of: Callable[[str], CallShape | None],
        listener: Listener | None,
        resumed: OpenItem | None = None,
        seal: Callable[[str], str] | None = None,
        cite: Callable[[str], list[dict[str, Any]]] | None = None,
    ) -> None:
        self.key = key
        self.next_index = index
        self.shape_of = shape_of
        """The shape of a call by the name the model used; None when it must not be called."""
        self.listener = listener
        self.seal = seal
        """Makes the `encrypted_content` of reasoning, for callers who want to carry it themselves."""
        self.cite = cite
        """Finds what a text refers to: annotations."""
        self.finished: list[ItemFinished] = []
        self.size = 0
        """Characters so far."""
        self._pieces = 0
        self._beside = 0
        """Bytes of what came beside the text: log probabilities, fields of calls that nobody knows, refused calls."""
        self._too_many = False
        """Calls, or items of a server that speaks in items."""
        self._items = 0
        """Items that a server itself began or ended."""
        self.calls = 0
        """Calls that were accepted."""
        self.refused_calls: list[str] = []
        """Names of calls that were dropped because they must not be called."""
        self._flow: _Open | None = None
        self._calls: dict[int, _Open | None] = {}
        if resumed is not None:
            self._flow = _Open(resumed.index, resumed.type)
            self._flow.pieces.append(resumed.text)
            self._flow.logprobs.extend(resumed.logprobs)
            self.next_index = max(self.next_index, resumed.index + 1)

    def text(self, delta: str, logprobs: list[Any] | None = None) -> None:
        flow = self._flow
        if flow is None or flow.kind != "message" or flow.over:
            flow = self._open_flow("message", {"role": "assistant", "content": []})
        flow.pieces.append(delta)
        self.size += len(delta)
        self._pieces += 1
        if logprobs:
            flow.logprobs.extend(logprobs)
            self._beside += len(msgspec.json.encode(logprobs))
        if self.listener is not None:
            self.listener.text(flow.index, delta, logprobs)

    def refuse(self, delta: str) -> None:
        flow = self._flow
        if flow is None or flow.kind != "message" or flow.over:
            flow = self._open_flow("message", {"role": "assistant", "content": []})
        flow.refusal.append(delta)
        self.size += len(delta)
        self._pieces += 1
        if self.listener is not None:
            self.listener.refusal(flow.index, delta)

    def reason(self, delta: str) -> None:
        flow = self._reasoning()
        flow.pieces.append(delta)
        self.size += len(delta)
        self._pieces += 1
        if self.listener is not None:
            self.listener.reasoning(flow.index, delta)

    def summarise(self, delta: str, part: int = 0) -> None:
        """A piece of what is told of the reasoning; another `part` than before begins the next summary."""
        flow = self._reasoning()
        if not flow.summaries or part != flow.summary_part:
            flow.summaries.append([])
            flow.summary_part = part
        flow.summaries[-1].append(delta)
        self.size += len(delta)
        self._pieces += 1
        if self.listener is not None:
            self.listener.summary(flow.index, len(flow.summaries) - 1, delta)

    def item(self, item: Item, origin: str, *, done: bool) -> None:
        """The server began or ended an item; what it has to get back of it is kept beside what is shown."""
        if self._items >= CALLS_MAX:
            self._too_many = True
            return
        self._items += 1
        self._beside += len(msgspec.json.encode(item))
        kind = item.get("type", "message")
        if kind == "message":
            self._message(item, done=done)
        elif kind == "reasoning":
            flow = self._reasoning(anew=not done)
            if done:
                flow.upstream = upstream_of(item, origin, summary=_summary(flow), text="".join(flow.pieces))
                flow.over = True
        else:
            whole = {**item, "upstream": {"at": origin, "id": item.get("id")}}
            whole.pop("id", None)
            self._open_flow("whole", whole).fields = whole

    def _message(self, item: Item, *, done: bool) -> None:
        fields = {name: item[name] for name in ("phase",) if item.get(name)}
        flow = self._flow
        if not done:
            self._open_flow("message", {"role": "assistant", "content": [], **fields}).fields = fields
        elif flow is not None and flow.kind == "message":
            flow.fields |= fields
            flow.over = True

    def _reasoning(self, *, anew: bool = False) -> _Open:
        flow = self._flow
        if flow is None or flow.kind != "reasoning" or flow.over or anew:
            flow = self._open_flow("reasoning", {"type": "reasoning", "summary": []})
        return flow

    def call(self, key: int, call_id: str, name: str, arguments: str, extra: dict[str, Any] | None) -> None:
        """A piece of the call that the backend knows by `key`."""
        self._pieces += 1
        if key not in self._calls:
            if len(self._calls) >= CALLS_MAX:
                self._too_many = True
                return
            self._open_call(key, call_id, name)
        call = self._calls[key]
        if call is None:
            self._beside += len(name) + len(arguments)
            return
        if extra:
            call.extra = {**(call.extra or {}), **extra}
            self._beside += len(msgspec.json.encode(extra))
        if arguments:
            call.pieces.append(arguments)
            self.size += len(arguments)
            if self.listener is not None and call.shape is not None and call.shape.streams:
                self.listener.arguments(call.index, arguments)

    def end(self, finish: str, usage: Usage | None, by: Answered | None = None) -> None:
        """Close everything; the last item carries `finish`, `usage`, `by`. An empty answer is an empty message."""
        cut = finish in CUT_SHORT
        if self._flow is None and not any(self._calls.values()) and not self.finished:
            self._open_flow("message", {"role": "assistant", "content": []})
        self._close_flow(cut=cut)
        for call in self._calls.values():
            if call is not None:
                self._close_call(call, cut=cut)
        self._calls.clear()
        last = self.finished.pop()
        self.finished.append(ItemFinished(last.index, last.item, finish, usage, by))

    def is_over(self, characters: int) -> bool:
        """Whether there is more of the answer than is kept of one."""
        return self.size + self._beside > characters or self._pieces > PIECES_MAX or self._too_many

    @property
    def begun(self) -> bool:
        """Whether anything of the answer was taken in: it cannot simply be asked for again then."""
        return bool(self.size or self.calls or self.refused_calls or self._items)

    def forget_refused(self) -> None:
        """Be ready for another try at an answer of which nothing but refused calls came: their keys come again."""
        self.refused_calls.clear()
        self._calls.clear()
        if self._flow is not None:
            self._flow.upstream = None  # its server would refuse the reasoning without the call that came of it

    def cut_off(self) -> None:
        """Close what is open as incomplete: the answer will not go on."""
        self._close_flow(cut=True)
        for call in self._calls.values():
            if call is not None:
                self._close_call(call, cut=True)
        self._calls.clear()

    def take(self) -> list[ItemFinished]:
        """Items finished since the last take."""
        taken, self.finished = self.finished, []
        return taken

    def _open_flow(self, kind: str, skeleton: Item) -> _Open:
        self._close_flow(cut=False)
        flow = self._flow = _Open(self._take_index(), kind)
        if self.listener is not None:
            self.listener.item_opened(flow.index, self._id(flow.index, skeleton), skeleton)
        return flow

    def _close_flow(self, *, cut: bool) -> None:
        flow, self._flow = self._flow, None
        if flow is None:
            return
        text = "".join(flow.pieces)
        item: Item
        if flow.kind == "reasoning":
            item = self._reasoning_item(flow, text)
        elif flow.kind == "whole":
            item = flow.fields
        else:
            item = {"role": "assistant", "content": self._content(flow, text), **flow.fields}
            if cut:
                item["status"] = "incomplete"
        self._close(flow.index, item)

    def _reasoning_item(self, flow: _Open, text: str) -> Item:
        summary = _summary(flow)
        item: Item = {"type": "reasoning", "summary": summary}
        if text:
            item["content"] = reasoning_content(text)
        if flow.upstream is not None:
            item["upstream"] = flow.upstream
        if self.seal is not None:
            item["encrypted_content"] = self.seal(to_carry(text, summary, flow.upstream))
        return item

    def _content(self, flow: _Open, text: str) -> Any:
        cited = self.cite(text) if self.cite is not None and text else []
        if not flow.refusal and not flow.logprobs and not cited:
            return text
        parts: list[dict[str, Any]] = []
        if text:
            parts.append({"type": "output_text", "text": text})
            if cited:
                parts[0]["annotations"] = cited
            if flow.logprobs:
                parts[0]["logprobs"] = flow.logprobs
        if flow.refusal:
            parts.append({"type": "refusal", "refusal": "".join(flow.refusal)})
        return parts

    def _open_call(self, key: int, call_id: str, name: str) -> None:
        shape = self.shape_of(name)
        if shape is None:
            self.refused_calls.append(name)
            self._calls[key] = None
            return
        self._close_flow(cut=False)
        self.calls += 1
        call = self._calls[key] = _Open(self._take_index(), "call")
        call.shape = shape
        call.call_id = call_id or ids.new_id("call")
        self.size += len(name) + len(call.call_id)
        if self.listener is not None and not shape.whole:
            skeleton = shape.build(call.call_id, "")
            self.listener.item_opened(call.index, self._id(call.index, skeleton), skeleton)

    def _close_call(self, call: _Open, *, cut: bool) -> None:
        assert call.shape is not None
        arguments = "".join(call.pieces)
        item = call.shape.build(call.call_id, arguments)
        if call.extra:
            item["extra"] = call.extra
        if cut:
            item["status"] = "incomplete"
        if self.listener is not None and not call.shape.streams and item.get("input"):
            self.listener.arguments(call.index, item["input"])
        if self.listener is not None and call.shape.waits and not cut:
            self.listener.called(call.index, item)
        self._close(call.index, item, shown=not call.shape.waits)

    def _close(self, index: int, item: Item, *, shown: bool = True) -> None:
        self.finished.append(ItemFinished(index, item))
        if self.listener is not None and shown:
            self.listener.item_closed(index, self._id(index, item), item)

    def _take_index(self) -> int:
        index = self.next_index
        self.next_index += 1
        return index

    def _id(self, index: int, item: Item) -> str:
        return ids.item_id(item_prefix(item), self.key, ids.OUTPUT_BASE + index)


def upstream_of(item: Item, origin: str, *, summary: list[dict[str, Any]], text: str) -> dict[str, Any]:
    """What of a server's reasoning item has to go back there as it came, and is not in our own item."""
    kept = {name: value for name, value in item.items() if value is not None and name not in _OURS}
    for name, ours in (("summary", summary), ("content", reasoning_content(text))):
        if item.get(name) and item[name] != ours:
            kept[name] = item[name]
    return {"at": origin, **kept}


def _summary(flow: _Open) -> list[dict[str, Any]]:
    return [{"type": "summary_text", "text": "".join(pieces)} for pieces in flow.summaries]
