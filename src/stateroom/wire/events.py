"""The stream of a run in the Responses API: from items and deltas to numbered, encoded events.

`ResponsesRenderer` is told what happens to a run and gives out frames of server-sent events. It knows the order that
clients rely on (every `added` has its `done`, one terminal event comes last) and raises `ImpossibleEvent` when it is
told something that cannot happen. It keeps no clock and sends nothing. The same renderer, restored from the frames
that were committed, goes on after a crash with the next number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from stateroom import ids
from stateroom.journal.entries import Frame, Item, OpenItem, RunView
from stateroom.wire.hosted_events import called, closing, opened, printed
from stateroom.wire.items import unpack, withheld
from stateroom.wire.open_items import STREAMED, Part, Streamed, StreamedItem, seen_events, skeleton
from stateroom.wire.responses import ENCODE, ResponseTemplate
from stateroom.wire.sse import DONE, KEEPALIVE, escape_line_breaks, events_of, slice_events

__all__ = ["DONE", "KEEPALIVE", "ImpossibleEvent", "ResponsesRenderer", "events_of", "slice_events"]

RUN_LIFE: Final[dict[str, dict[str, str]]] = {
    "new": {"begin queued": "queued", "begin": "running"},
    "queued": {"proceed": "running", "end": "ended"},
    "running": {"proceed": "running", "item": "running", "end": "ended"},
    "ended": {},
}
"""What may happen to a run in each state, and the state it leads to."""

ITEM_LIFE: Final[dict[str, dict[str, str]]] = {
    "absent": {"opened": "open", "closed": "closed"},
    "open": {"delta": "open", "closed": "closed", "abandoned": "closed"},
    "closed": {},
}
"""What may happen to an output item in each state, and the state it leads to."""

TERMINAL: Final = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "failed": "response.failed",
    "cancelled": "response.incomplete",
}
"""The last event of a run by its status. No SDK knows an event for cancelled runs: the object's status tells."""

_PADDING_BLOCK: Final = 16


class ImpossibleEvent(RuntimeError):
    """The caller has a bug: this cannot happen in the state that the run or item is in."""


class ResponsesRenderer:
    """Turns what happens to one run into its stream."""

    __slots__ = (
        "_closed",
        "_encoded",
        "_first",
        "_include",
        "_obfuscate",
        "_open",
        "_out",
        "_template",
        "next_sequence",
        "stage",
    )

    def __init__(self, view: RunView, *, obfuscate: bool = False) -> None:
        self.next_sequence = 0
        """The number of the next event."""
        self.stage = "new"
        """State of the run, as in RUN_LIFE."""
        self._template = ResponseTemplate(view)
        self._obfuscate = obfuscate
        self._include = view.settings.include
        self._out: list[bytes] = []
        self._first = 0
        self._open: dict[int, StreamedItem] = {}
        self._closed: set[int] = set()
        self._encoded: dict[int, bytes] = {}

    def begin(self, view: RunView) -> None:
        """The run exists: `response.created`, then queued or in_progress."""
        queued = view.status == "queued"
        self._advance("begin queued" if queued else "begin")
        rendered = self._template.render(view)
        self._response("response.created", rendered)
        self._response("response.queued" if queued else "response.in_progress", rendered)

    def proceed(self, view: RunView) -> None:
        """A queued run starts. Nothing happens when it had started already."""
        started = self.stage == "running"
        self._advance("proceed")
        if not started:
            self._response("response.in_progress", self._template.render(view))

    def item_opened(self, index: int, item_id: str, item: Item) -> None:
        """An output item begins. `item` is packed: empty where deltas will fill it in, whole for other types."""
        self._advance("item")
        self._step(index, "opened")
        self._start(index, item_id, item)

    def text(self, index: int, delta: str, logprobs: list[Any] | None = None) -> None:
        """More visible text of a message."""
        streamed = self._open.get(index)
        if streamed is None or (part := streamed.part) is None or part.form is not STREAMED["output_text"]:
            part = self._part(index, "output_text")
        self._delta(part, delta, logprobs)

    def refusal(self, index: int, delta: str) -> None:
        """More text of a refusal."""
        self._delta(self._part(index, "refusal"), delta, None)

    def reasoning(self, index: int, delta: str) -> None:
        """More reasoning text."""
        self._delta(self._part(index, "reasoning_text"), delta, None)

    def summary(self, index: int, part: int, delta: str) -> None:
        """More of what is told of reasoning; parts begin one after the other, from 0."""
        self._advance("item")
        self._step(index, "delta")
        streamed = self._open[index]
        if streamed.kind != "reasoning" or not len(streamed.summaries) - 1 <= part <= len(streamed.summaries):
            raise ImpossibleEvent(f"item {index}, of type {streamed.kind}, cannot have a delta of summary {part} now")
        self._delta(self._summary(streamed, part), delta, None)

    def compacting(self, index: int, item_id: str) -> None:
        """The summary of a compaction item is being written; it is shown, sealed, when the item is closed."""
        self._advance("item")
        self._step(index, "delta")
        self._emit("response.compaction.compacting", {"item_id": item_id, "output_index": index})

    def arguments(self, index: int, delta: str) -> None:
        """More of a call's arguments, or of a custom tool's input."""
        streamed = self._open.get(index)
        kind = streamed.kind if streamed is not None else "function_call"
        self._delta(self._part(index, kind), delta, None)

    def called(self, index: int, item: Item) -> None:
        """A call is written that is carried out here, and whose item will hold the outcome."""
        self._advance("item")
        self._step(index, "delta")
        streamed = self._open[index]
        streamed.told = True
        for kind, fields in called(item, streamed.place()):
            self._emit(kind, fields)

    def printed(self, index: int, command: int, stdout: str, stderr: str) -> None:
        """A command of a shell call, whose output this item is, said something."""
        self._advance("item")
        self._step(index, "delta")
        self._emit(*printed(self._open[index].place(), command, stdout, stderr))

    def item_closed(self, index: int, item_id: str, item: Item) -> None:
        """An output item is finished. What its stream still lacks, up to the whole item, is made up for."""
        self._advance("item")
        self._step(index, "closed")
        streamed = self._open.get(index)
        if streamed is None:
            streamed = self._start(index, item_id, skeleton(item))
        elif streamed.id != item_id:
            raise ImpossibleEvent(f"item {index} was opened as {streamed.id} and closed as {item_id}")
        del self._open[index]
        self._closed.add(index)
        final = withheld(unpack(item, item_id), self._include)
        self._summarise(streamed, final)
        parts = streamed.final_parts(final)
        for position, (form, text, shown) in enumerate(parts):
            if position < len(streamed.parts):
                part = streamed.parts[position]
                if part.form is not form:
                    raise ImpossibleEvent(f"part {position} of item {index} was streamed as another type")
            else:
                part = self._begin_part(streamed, form)
            self._annotate(part, shown)
            self._finish_part(streamed, part, text, shown)
        for part in streamed.parts[len(parts) :]:
            self._finish_part(streamed, part, part.text(), part.shown())
        for kind, fields in closing(item, streamed.place(), told=streamed.told):
            self._emit(kind, fields)
        encoded = ENCODE(final)
        self._encoded[index] = encoded
        self._item("response.output_item.done", index, encoded)

    def item_abandoned(self, index: int) -> None:
        """An open item is cut off for good: it ends as incomplete, with what there is of it."""
        self._advance("item")
        self._step(index, "abandoned")
        self._abandon(index)

    def end(self, view: RunView) -> None:
        """The run is over: the terminal event. Items that are still open end as incomplete first."""
        kind = TERMINAL[view.status]
        self._advance("end")
        for index in sorted(self._open):
            self._abandon(index)
        if view.status == "failed":
            error = view.error or {}
            self._emit(
                "error",
                {
                    "code": error.get("code") or "server_error",
                    "message": error.get("message") or "The run failed.",
                    "param": error.get("param"),
                },
            )
        self._response(kind, self._template.render(view, self._encoded))

    def take(self) -> Frame | None:
        """Everything since the last call as one frame; None when nothing happened."""
        if not self._out:
            return None
        body = escape_line_breaks(b"".join(self._out))
        frame = Frame(self._first, self.next_sequence - 1, body)
        self._out.clear()
        self._first = self.next_sequence
        return frame

    @classmethod
    def restore(
        cls, view: RunView, frames: Sequence[Frame], *, obfuscate: bool = False
    ) -> tuple[ResponsesRenderer, list[OpenItem]]:
        """The renderer as it was when the last of these frames was taken, and the items that were open then."""
        renderer = cls(view, obfuscate=obfuscate)
        for event in seen_events(frames):
            if event.sequence_number != renderer.next_sequence:
                raise ImpossibleEvent(f"event {event.sequence_number} follows {renderer.next_sequence - 1}")
            renderer.next_sequence += 1
            renderer._replay(event.type, event)
        renderer._first = renderer.next_sequence
        opened = [streamed.as_open_item() for _, streamed in sorted(renderer._open.items())]
        return renderer, opened

    def _replay(self, kind: str, event: Any) -> None:
        """Take over the state that an already committed event left behind."""
        if kind in ("response.created", "response.queued"):
            self.stage = "queued"
        elif kind == "response.in_progress":
            self.stage = "running"
        elif kind in TERMINAL.values():
            self.stage = "ended"
        elif kind == "response.output_item.added":
            self._open[event.output_index] = StreamedItem.restored(event.output_index, event.item)
        elif kind == "response.output_item.done":
            del self._open[event.output_index]
            self._closed.add(event.output_index)
            if event.item.get("type") == "code_interpreter_call":  # the record of it has no images
                self._encoded[event.output_index] = ENCODE(event.item)
        elif event.output_index in self._open:
            self._open[event.output_index].replay(kind, event)

    def _advance(self, what: str) -> None:
        following = RUN_LIFE[self.stage].get(what)
        if following is None:
            raise ImpossibleEvent(f"'{what}' cannot happen to a run that is {self.stage}")
        self.stage = following

    def _step(self, index: int, what: str) -> None:
        state = "closed" if index in self._closed else "open" if index in self._open else "absent"
        if what not in ITEM_LIFE[state]:
            raise ImpossibleEvent(f"'{what}' cannot happen to item {index}, which is {state}")

    def _start(self, index: int, item_id: str, item: Item) -> StreamedItem:
        streamed = self._open[index] = StreamedItem(index, item_id, item)
        self._item("response.output_item.added", index, ENCODE(streamed.opening()))
        for kind, fields in opened(streamed.kind, streamed.place()):
            self._emit(kind, fields)
        return streamed

    def _part(self, index: int, kind: str) -> Part:
        """The open part of this kind; the one before it is finished first."""
        self._advance("item")
        self._step(index, "delta")
        streamed = self._open[index]
        form = STREAMED.get(kind)
        if form is None or form.item != streamed.kind:
            raise ImpossibleEvent(f"an item of type {streamed.kind} has no {kind} deltas")
        if streamed.part is not None and streamed.part.form is form:
            return streamed.part
        return self._begin_part(streamed, form)

    def _begin_part(self, streamed: StreamedItem, form: Streamed) -> Part:
        previous = streamed.part
        if previous is not None:
            self._finish_part(streamed, previous, previous.text(), previous.shown())
        part = streamed.begin_part(form)
        if form.in_content:
            self._emit("response.content_part.added", {**part.place, "part": part.empty()})
        return part

    def _delta(self, part: Part, delta: str, logprobs: list[Any] | None) -> None:
        if not delta and not logprobs:
            return
        part.pieces.append(delta)
        sequence = self.next_sequence
        self.next_sequence = sequence + 1
        encoded = ENCODE(delta)
        if not logprobs and not self._obfuscate:
            self._out.append(b"%b%b%b%d}\n\n" % (part.head, encoded, part.tail, sequence))
            return
        tail = part.tail
        if logprobs:
            part.logprobs.extend(logprobs)
            tail = b',"logprobs":%b,"sequence_number":' % ENCODE(logprobs)
        padding = b""
        if self._obfuscate:
            padding = b',"obfuscation":"%b"' % ids.random_padding(-len(encoded) % _PADDING_BLOCK).encode()
        self._out.append(b"%b%b%b%b%d}\n\n" % (part.head, encoded, padding, tail, sequence))

    def _finish_part(self, streamed: StreamedItem, part: Part, text: str, shown: dict[str, Any]) -> None:
        if part.done:
            return
        so_far = part.text()
        if len(text) > len(so_far) and text.startswith(so_far):
            self._delta(part, text[len(so_far) :], None)
        part.done = True
        streamed.part = None
        self._emit(part.form.done_event, part.done_fields(text, streamed.item))
        if part.form.in_content:
            self._emit("response.content_part.done", {**part.place, "part": shown})

    def _annotate(self, part: Part, shown: dict[str, Any]) -> None:
        for position, annotation in enumerate(shown.get("annotations") or ()):
            fields = {**part.place, "annotation_index": position, "annotation": annotation}
            self._emit("response.output_text.annotation.added", fields)

    def _abandon(self, index: int) -> None:
        streamed = self._open.pop(index)
        self._closed.add(index)
        for summary in streamed.summaries[-1:]:
            self._finish_summary(summary, summary.text())
        for part in streamed.parts:
            self._finish_part(streamed, part, part.text(), part.shown())
        self._item("response.output_item.done", index, ENCODE(streamed.cut_off()))

    def _summarise(self, streamed: StreamedItem, final: dict[str, Any]) -> None:
        """What is told of reasoning, as far as it has not been streamed yet."""
        if streamed.kind != "reasoning":
            return
        for position, summary in enumerate(final["summary"]):
            part = self._summary(streamed, position)
            text, so_far = summary["text"], part.text()
            if not part.done and len(text) > len(so_far) and text.startswith(so_far):
                self._delta(part, text[len(so_far) :], None)
            self._finish_summary(part, text)

    def _summary(self, streamed: StreamedItem, position: int) -> Part:
        """This summary, which may be a new one; the one before it is finished then."""
        if position < len(streamed.summaries):
            return streamed.summaries[position]
        for previous in streamed.summaries[-1:]:
            self._finish_summary(previous, previous.text())
        part = streamed.begin_summary()
        shown = {"type": "summary_text", "text": ""}
        self._emit("response.reasoning_summary_part.added", {**part.place, "part": shown})
        return part

    def _finish_summary(self, part: Part, text: str) -> None:
        if part.done:
            return
        part.done = True
        shown = {"type": "summary_text", "text": text}
        self._emit("response.reasoning_summary_text.done", {**part.place, "text": text})
        self._emit("response.reasoning_summary_part.done", {**part.place, "part": shown})

    def _item(self, kind: str, index: int, encoded: bytes) -> None:
        self._emit(kind, {"output_index": index, "item": msgspec.Raw(encoded)})

    def _response(self, kind: str, rendered: bytes) -> None:
        self._emit(kind, {"response": msgspec.Raw(rendered)})

    def _emit(self, kind: str, fields: dict[str, Any]) -> None:
        data = ENCODE({"type": kind, **fields, "sequence_number": self.next_sequence})
        self.next_sequence += 1
        self._out.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), data))
