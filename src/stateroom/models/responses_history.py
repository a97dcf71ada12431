"""A branch's items as the input of a Responses request, each encoded once: they grow at their end and are joined. Pure.

A server that keeps nothing checks what it is given: every call needs its output, every output its call, and reasoning
stands right before what came of it. So model items gather in a group until something else comes; a call whose output
has not come by then is shown in its place with a neutral output, and moves down to its real one when that arrives.
Reasoning goes back only to the server that it came from, as it came, and only if something came of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any, Final

from stateroom.journal.entries import ContextItem, Item
from stateroom.journal.hosted_items import told_name
from stateroom.wire.chat_history import NO_RESULT, SILENT
from stateroom.wire.chat_parts import PART_SEPARATOR, arguments_object, encode, part_text, plain_text
from stateroom.wire.other_items import told_in_general

_MESSAGE_ID: Final = re.compile(r"msg_[A-Za-z0-9_-]{1,60}")
_CALL_FIELDS: Final = frozenset({"type", "id", "call_id", "name", "arguments", "status"})


class _Gap:
    """A place in the closed history where calls still wait for their outputs."""

    __slots__ = ("at", "calls")

    def __init__(self, at: int) -> None:
        self.at = at
        self.calls: dict[str, bytes] = {}


class ResponsesHistory:
    """The encoded input items of one context, for the backend of this name."""

    def __init__(self, origin: str, *, sealed: bool = True) -> None:
        self.origin = origin
        self.sealed = sealed
        """Whether reasoning goes back; not to a server that cannot open it any more."""
        self.consumed = 0
        """How many items of the context are in it."""
        self._last = ""
        self._closed = bytearray()
        self._group: list[tuple[str, bytes]] = []
        """(call id or nothing, item with the reasoning before it) of what the model said last."""
        self._outputs: dict[str, bytes] = {}
        """Of the group's calls, in the order in which they came."""
        self._thoughts: list[bytes] = []
        """Reasoning of which nothing has come yet."""
        self._gaps: dict[int, _Gap] = {}
        """By their places, which only grow."""
        self._pending: dict[str, _Gap] = {}
        self._answered: dict[str, int] = {}
        """Call id -> hash of its output."""

    def continues(self, items: Sequence[ContextItem]) -> bool:
        """Whether these items begin with the ones that are in it."""
        count = self.consumed
        return count == 0 or (len(items) >= count and items[count - 1].id == self._last)

    def extend(self, items: Sequence[ContextItem]) -> None:
        """Add those items of the context that are new."""
        for held in items[self.consumed :]:
            self._add(held.item, held.id)
            self._last = held.id
        self.consumed = len(items)

    def fragments(self) -> list[bytes | bytearray]:
        """All items, encoded; joined they stand between the brackets. To be used before the history grows."""
        parts: list[bytes | bytearray] = []
        at = 0
        for gap in self._gaps.values():
            parts += (self._piece(at, gap.at), b",".join([*gap.calls.values(), *map(_neutral, gap.calls)]))
            at = gap.at
        parts.append(self._piece(at, len(self._closed)) if at else self._closed)
        waiting = [call_id for call_id, _ in self._group if call_id and call_id not in self._outputs]
        now = [item for _, item in self._group]
        parts.append(b",".join([*now, *self._outputs.values(), *map(_neutral, waiting)]))
        joined: list[bytes | bytearray] = []
        for part in parts:
            if part:
                joined += (b",", part)
        return joined[1:]

    def _piece(self, start: int, end: int) -> bytes:
        piece = bytes(self._closed[start:end])
        return piece[1:] if piece.startswith(b",") else piece

    # What each kind of item becomes.

    def _add(self, item: Item, item_id: str) -> None:
        kind = str(item.get("type") or "message")
        if kind == "message":
            self._add_message(item, item_id)
        elif kind == "reasoning":
            self._add_reasoning(item)
        elif kind == "function_call":
            self._add_call(item, item_id, arguments_object(item.get("arguments")))
        elif kind == "custom_tool_call":
            self._add_call(item, item_id, encode({"input": item.get("input") or ""}).decode())
        elif kind in ("function_call_output", "custom_tool_call_output"):
            self._add_output(str(item.get("call_id") or ""), item.get("output"))
        elif (upstream := self._own(item)) is not None:
            bare = {name: value for name, value in item.items() if name != "upstream"}
            self._say("", encode({**upstream, **bare}))
        elif kind not in SILENT:
            self._add_other(kind, item, item_id)

    def _own(self, item: Item) -> dict[str, Any] | None:
        """What this server has to get back of an item as it came; None when the item is not from here."""
        upstream = item.get("upstream")
        if not isinstance(upstream, dict) or upstream.get("at") != self.origin:
            return None
        return {name: value for name, value in upstream.items() if name != "at" and value is not None}

    def _add_message(self, item: Item, item_id: str) -> None:
        role = item.get("role")
        content = item.get("content")
        if role == "assistant":
            text = content if isinstance(content, str) else "".join([part_text(part) for part in _parts(content)])
            if text:
                self._say("", encode(_answer(text, item, item_id)))
        elif role in ("system", "developer"):
            self._close(encode({"role": role, "content": plain_text(content)}))
        else:
            self._close(encode({"role": "user", "content": _content(content)}))

    def _add_reasoning(self, item: Item) -> None:
        """Ours goes nowhere, other servers' neither; what a client brought sealed by somebody may be this server's."""
        if not self.sealed:
            return
        summary = item.get("summary") or []
        if (own := self._own(item)) is not None:
            content = item.get("content") or own.get("content")
            if not own.get("encrypted_content") and not content:
                return  # a mere reference to what the server does not keep
            shown = {"type": "reasoning", "summary": summary, **({"content": content} if content else {})}
            self._thoughts.append(encode({**shown, **own}))
        elif item.get("encrypted_content") and "upstream" not in item and not item.get("content"):
            named = {"id": item["id"]} if item.get("id") else {}
            sealed = item["encrypted_content"]
            shown = {"type": "reasoning", **named, "summary": summary, "encrypted_content": sealed}
            self._thoughts.append(encode(shown))

    def _add_call(self, item: Item, item_id: str, arguments: str) -> None:
        namespace, name = item.get("namespace"), str(item.get("name") or "tool")
        call_id = str(item.get("call_id") or item_id)
        self._call(call_id, told_name(name, namespace), arguments, item.get("extra"))

    def _call(self, call_id: str, name: str, arguments: str, extra: Any = None) -> None:
        if call_id in self._pending:
            self._leave_gap(call_id)
        call = {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}
        if isinstance(extra, dict):
            call |= {field: value for field, value in extra.items() if field not in _CALL_FIELDS}
        self._say(call_id, encode(call))

    def _add_output(self, call_id: str, output: Any) -> None:
        held = _output(output)
        encoded = call_output(call_id, held)
        if call_id in self._pending:
            self._group.append((call_id, self._leave_gap(call_id)))
        elif call_id in self._outputs or all(call_id != other for other, _ in self._group):
            self._add_stray_output(call_id, held, hash(encoded))
            return
        self._outputs[call_id] = encoded
        self._answered[call_id] = hash(encoded)

    def _add_stray_output(self, call_id: str, output: str | list[dict[str, Any]], digest: int) -> None:
        """An output without a waiting call: repeated ones are dropped, others are told by the user."""
        known = self._answered.get(call_id)
        if known == digest:
            return
        told = f"{'Further result' if known is not None else 'Result'} of the tool call {call_id}:"
        if isinstance(output, str):
            self._close(encode({"role": "user", "content": f"{told}\n{output}"}))
        else:
            self._close(encode({"role": "user", "content": [{"type": "input_text", "text": told}, *output]}))

    def _add_other(self, kind: str, item: Item, item_id: str) -> None:
        told = told_in_general(kind, item, item_id)
        if told.name is not None:
            self._call(told.call_id, told.name, told.arguments)
        if told.output is not None:
            self._add_output(told.call_id, told.output)
        if told.text:
            self._close(encode({"role": "user", "content": told.text}))

    # Groups, and calls that wait.

    def _say(self, call_id: str, item: bytes) -> None:
        """Add what the model said, with the reasoning that led there."""
        if self._outputs:
            self._close_group()
        if self._thoughts:
            item = b",".join([*self._thoughts, item])
            self._thoughts.clear()
        if call_id:
            self._group = [entry for entry in self._group if entry[0] != call_id]
        self._group.append((call_id, item))

    def _close(self, item: bytes) -> None:
        """Add what ends the model's turn; reasoning of which nothing came is left out."""
        self._close_group()
        self._thoughts.clear()
        self._append(item)

    def _append(self, item: bytes) -> None:
        if self._closed:
            self._closed += b","
        self._closed += item

    def _close_group(self) -> None:
        waiting = {call_id: item for call_id, item in self._group if call_id and call_id not in self._outputs}
        for call_id, item in self._group:
            if call_id not in waiting:
                self._append(item)
        if waiting:
            at = len(self._closed)
            gap = self._gaps.setdefault(at, _Gap(at))
            gap.calls |= waiting
            self._pending |= dict.fromkeys(waiting, gap)
        for encoded in self._outputs.values():
            self._append(encoded)
        self._group, self._outputs = [], {}

    def _leave_gap(self, call_id: str) -> bytes:
        """Take a pending call out of its place."""
        gap = self._pending.pop(call_id)
        call = gap.calls.pop(call_id)
        if not gap.calls:
            del self._gaps[gap.at]
        return call


def call_output(call_id: str, output: str | list[dict[str, Any]]) -> bytes:
    return encode({"type": "function_call_output", "call_id": call_id, "output": output})


def _neutral(call_id: str) -> bytes:
    return call_output(call_id, NO_RESULT)


# Content.


def _parts(content: Any) -> list[dict[str, Any]]:
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _content(content: Any) -> str | list[dict[str, Any]]:
    """The content of a user message."""
    return content if isinstance(content, str) else [_part(part) for part in _parts(content)]


def _output(output: Any) -> str | list[dict[str, Any]]:
    """What a call gave: text as a string, which every server takes; with images or files in it a list of parts."""
    if isinstance(output, str):
        return output
    if output is None:
        return ""
    parts: list[dict[str, Any]] = []
    for part in output if isinstance(output, list) else [output]:
        if isinstance(part, dict) and (part.get("type") in _MEDIA or isinstance(part.get("text"), str)):
            parts.append(_part(part))
        else:
            parts.append(_text(part if isinstance(part, str) else encode(part).decode()))
    if all(part["type"] == "input_text" for part in parts):
        return PART_SEPARATOR.join([part["text"] for part in parts])
    return parts


_MEDIA: Final = frozenset({"input_image", "computer_screenshot", "input_file"})


def _part(part: dict[str, Any]) -> dict[str, Any]:
    """One part of what a user or a tool says. URLs that lead elsewhere go to no server, as in `wire.chat_parts`."""
    kind = part.get("type")
    if kind in ("input_image", "computer_screenshot"):
        url = part.get("image_url")
        if not isinstance(url, str) or not url.startswith("data:"):
            return _text("[an image that is not available]")
        return {"type": "input_image", "image_url": url, "detail": part.get("detail") or "auto"}
    if kind == "input_file":
        name, data = part.get("filename") or "file", part.get("file_data")
        if not isinstance(data, str) or not data or (":" in data and not data.startswith("data:")):
            return _text(f"[the file {name} is not available]")
        return {"type": "input_file", "filename": name, "file_data": data}
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        audio = part["input_audio"]
        data = audio.get("data")
        if not isinstance(data, str) or not data or ":" in data:
            return _text("[a recording that is not available]")
        return {"type": kind, kind: {name: audio[name] for name in ("data", "format") if name in audio}}
    text = part_text(part)
    return _text(text or ("" if "text" in part else f"[{kind}]"))


def _answer(text: str, item: Item, item_id: str) -> Item:
    """An earlier answer, in full: some servers refuse one without its id, its status or its annotations."""
    name = item_id if _MESSAGE_ID.fullmatch(item_id) else "msg_" + hashlib.sha256(item_id.encode()).hexdigest()[:48]
    part = {"type": "output_text", "text": text, "annotations": []}
    answer = {"type": "message", "id": name, "role": "assistant", "status": "completed", "content": [part]}
    return {**answer, "phase": item["phase"]} if item.get("phase") else answer


def _text(text: str) -> dict[str, Any]:
    return {"type": "input_text", "text": text}
