"""An output item while its events are being written: its parts, what was streamed of them, and their templates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from stateroom.journal.entries import Frame, Item, OpenItem
from stateroom.wire.hosted_events import EMPTY, IN_PROGRESS, TOLD
from stateroom.wire.item_types import TYPES
from stateroom.wire.items import type_of, unpack
from stateroom.wire.sse import events_of


class Streamed(msgspec.Struct, frozen=True):
    """A kind of text that goes out in deltas."""

    item: str
    """The type of items that hold it."""
    event: str
    """What its events are called, before `.delta` and `.done`."""
    field: str
    """Under which name the whole text stands in the done event and in the finished part or item."""
    part: str = ""
    """Its type as a content part; empty for text that is no content part."""

    @property
    def in_content(self) -> bool:
        return bool(self.part)

    @property
    def done_event(self) -> str:
        return self.event + ".done"


STREAMED: Final[dict[str, Streamed]] = {
    "output_text": Streamed("message", "response.output_text", "text", "output_text"),
    "refusal": Streamed("message", "response.refusal", "refusal", "refusal"),
    "reasoning_text": Streamed("reasoning", "response.reasoning_text", "text", "reasoning_text"),
    "function_call": Streamed("function_call", "response.function_call_arguments", "arguments"),
    "custom_tool_call": Streamed("custom_tool_call", "response.custom_tool_call_input", "input"),
}
"""By type of the content part, or of the item."""

SUMMARY: Final = Streamed("reasoning", "response.reasoning_summary_text", "text")
"""What is told of reasoning. It has its own place beside the content, so it is no content part."""

_BY_DELTA: Final = {form.event + ".delta": form for form in STREAMED.values()}
_BY_DONE: Final = {form.done_event: form for form in STREAMED.values() if not form.in_content}


class Part:
    """A text that is being streamed."""

    __slots__ = ("done", "form", "head", "logprobs", "pieces", "place", "tail")

    def __init__(self, form: Streamed, place: dict[str, Any]) -> None:
        self.form = form
        self.place = place
        """The fields that say where it is: item_id, output_index, and content_index of a content part."""
        self.pieces: list[str] = []
        self.logprobs: list[Any] = []
        self.done = False
        event = f"{form.event}.delta"
        data = msgspec.json.encode({"type": event, **place})
        self.head = b'event: %b\ndata: %b,"delta":' % (event.encode(), data[:-1])
        self.tail = b',"logprobs":[],"sequence_number":' if form.part == "output_text" else b',"sequence_number":'

    def text(self) -> str:
        """What was streamed so far."""
        return "".join(self.pieces)

    def empty(self) -> dict[str, Any]:
        """The content part as it is announced."""
        return self._with("")

    def shown(self) -> dict[str, Any]:
        """The content part with what was streamed so far."""
        return self._with(self.text(), self.logprobs)

    def _with(self, text: str, logprobs: Sequence[Any] = ()) -> dict[str, Any]:
        part = {"type": self.form.part, self.form.field: text}
        return {**part, "annotations": [], "logprobs": logprobs} if self.form.part == "output_text" else part

    def done_fields(self, text: str, item: Item) -> dict[str, Any]:
        """The fields of its done event."""
        fields = {**self.place, self.form.field: text}
        if self.form.part == "output_text":
            fields["logprobs"] = self.logprobs
        elif self.form.item == "function_call":
            fields["name"] = item.get("name", "")
        return fields


class StreamedItem:
    """An output item of which at least `response.output_item.added` went out."""

    __slots__ = ("id", "index", "item", "kind", "part", "parts", "summaries", "told")

    def __init__(self, index: int, item_id: str, item: Item) -> None:
        self.index = index
        self.id = item_id
        self.item = item
        """Packed, as it was when it began."""
        self.kind = type_of(item)
        self.parts: list[Part] = []
        self.part: Part | None = None
        """The part that is open now."""
        self.summaries: list[Part] = []
        """Only the last one may be open."""
        self.told = False
        """Of a call that is carried out here: what the model wrote was shown."""

    @classmethod
    def restored(cls, index: int, shown: dict[str, Any]) -> StreamedItem:
        """From the item in a committed `response.output_item.added`."""
        derived = ("id", "status") if _has_progress(shown["type"]) else ("id",)
        item = {name: value for name, value in shown.items() if name not in derived}
        if item["type"] == "message":
            del item["type"]
        return cls(index, shown["id"], item)

    def opening(self) -> dict[str, Any]:
        """The item as it is announced: whole in shape, in progress when deltas are to follow."""
        shown = unpack(self.item, self.id)
        if self.kind == "mcp_call":
            shown["arguments"] = ""  # deltas bring them: who adds those up must begin with nothing
        if _has_progress(self.kind):
            shown["status"] = "in_progress"
        return shown

    def place(self) -> dict[str, Any]:
        """The fields that say where it is."""
        return {"item_id": self.id, "output_index": self.index}

    def begin_part(self, form: Streamed) -> Part:
        place: dict[str, Any] = {"item_id": self.id, "output_index": self.index}
        if form.in_content:
            place["content_index"] = len(self.parts)
        part = self.part = Part(form, place)
        self.parts.append(part)
        return part

    def begin_summary(self) -> Part:
        place = {"item_id": self.id, "output_index": self.index, "summary_index": len(self.summaries)}
        part = Part(SUMMARY, place)
        self.summaries.append(part)
        return part

    def final_parts(self, final: dict[str, Any]) -> list[tuple[Streamed, str, dict[str, Any]]]:
        """The streamable texts of the finished item, each with the part as it is to be shown."""
        form = STREAMED.get(self.kind)
        if form is not None and form.item == self.kind:
            return [(form, final[form.field], {})]
        found = []
        for part in final.get("content", ()) if self.kind in ("message", "reasoning") else ():
            form = STREAMED.get(part["type"])
            if form is not None and form.item == self.kind:
                found.append((form, part[form.field], part))
        return found

    def cut_off(self) -> dict[str, Any]:
        """The item as it ends when it is abandoned."""
        item = dict(self.item)
        if self.summaries:
            item["summary"] = [{"type": "summary_text", "text": part.text()} for part in self.summaries]
        for part in self.parts:
            if part.form.in_content:
                item["content"] = [*item.get("content", ()), part.shown()]
            else:
                item[part.form.field] = part.text()
        known = TYPES.get(self.kind)
        if known is None or "status" in known.derived:
            item["status"] = "incomplete"
        return unpack(item, self.id)

    def as_open_item(self) -> OpenItem:
        """What the runtime needs to know of it after a crash: its visible text, reasoning or arguments."""
        parts = [part for part in self.parts if part.form.part != "refusal"]
        logprobs = [each for part in parts for each in part.logprobs]
        return OpenItem(self.index, self.kind, "".join([part.text() for part in parts]), logprobs)

    def replay(self, kind: str, event: SeenEvent) -> None:
        """Take over what a committed event did to this item."""
        if kind == "response.content_part.added":
            self.begin_part(STREAMED[event.part.type])
        elif kind == "response.reasoning_summary_part.added":
            self.begin_summary()
        elif kind == "response.reasoning_summary_text.delta":
            self.summaries[-1].pieces.append(event.delta)
        elif kind == "response.reasoning_summary_part.done":
            self.summaries[-1].done = True
        elif kind in TOLD:
            self.told = True
        elif kind in _BY_DELTA:
            form = _BY_DELTA[kind]
            part = self.part if self.part is not None and self.part.form is form else self.begin_part(form)
            part.pieces.append(event.delta)
            part.logprobs.extend(event.logprobs)
        elif (kind == "response.content_part.done" or kind in _BY_DONE) and self.part is not None:
            self.part.done = True
            self.part = None


def skeleton(item: Item) -> Item:
    """A finished item as it would have been when it began: without what deltas carry."""
    kind = type_of(item)
    if kind == "message":
        return {**_without(item, "status"), "content": []}
    if kind == "reasoning":
        return {**_without(item, "status", "content", "encrypted_content"), "summary": []}
    if kind in EMPTY:
        return {**_without(item, "status"), **EMPTY[kind]}
    form = STREAMED.get(kind)
    return {**_without(item, "status"), form.field: ""} if form is not None else item


def _has_progress(kind: str) -> bool:
    return kind in IN_PROGRESS or any(form.item == kind for form in STREAMED.values())


def _without(item: Item, *names: str) -> Item:
    return {name: value for name, value in item.items() if name not in names}


class SeenPart(msgspec.Struct, frozen=True):
    type: str = ""


class SeenEvent(msgspec.Struct):
    """What is read back of a committed event."""

    type: str
    sequence_number: int
    output_index: int = -1
    delta: Any = ""
    """A text, but for the output of commands: that is an object."""
    logprobs: list[Any] = []
    part: SeenPart = SeenPart()
    item: dict[str, Any] = {}


_DECODE: Final = msgspec.json.Decoder(SeenEvent).decode


def seen_events(frames: Sequence[Frame]) -> Iterator[SeenEvent]:
    """The events of committed frames, in order."""
    for frame in frames:
        for data in events_of(frame.body):
            yield _DECODE(data)
