"""A branch's items as chat messages, each encoded once: they grow at their end and are joined for every call. Pure.

Chat servers are strict where Responses is not: a tool message must stand right behind the assistant message that made
the call. So an assistant message is collected from all that belongs to it (reasoning, text, adjacent calls, their
results) and closed by what comes next. A call whose result has not come when something else follows is *pending*: it
is shown in its place with a neutral result, and moves down to its real result when that arrives, however late.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from stateroom.journal.entries import ContextItem, Item
from stateroom.journal.hosted_items import told_name
from stateroom.wire.chat_parts import (
    arguments_object,
    encode,
    part_text,
    plain_text,
    tool_output,
    user_content,
)
from stateroom.wire.other_items import told_in_general

NO_RESULT: Final = "[There is no result of this call: it is still running, or it was interrupted.]"

SILENT: Final = frozenset(
    {
        "additional_tools",
        "compaction_trigger",
        "configuration_update",
        "erased",
        "image_generation_call",
        "item_reference",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_list_tools",
        "web_search_call",
    }
)
"""Types of items that say nothing to a model, or whose content is in the messages around them."""


class _Turn:
    """An assistant message in the making, with the results of its calls."""

    __slots__ = ("calls", "images", "later", "reasoning", "results", "texts")

    def __init__(self) -> None:
        self.reasoning: list[str] = []
        self.texts: list[str] = []
        self.calls: dict[str, bytes] = {}
        """By call id; each one encoded."""
        self.results: dict[str, bytes] = {}
        self.images: list[dict[str, Any]] = []
        self.later: list[str] = []
        """Reasoning that came after the text: it belongs to what follows."""

    def messages(self, field: str, *, pending: bool) -> bytes:
        """Encoded, joined by commas. With `pending`, calls without a result are answered with a neutral one."""
        calls = self.calls if pending else {key: self.calls[key] for key in self.calls if key in self.results}
        if not calls and not self.texts:
            return b""
        text = "\n\n".join(self.texts)
        parts = [b'{"role":"assistant","content":', encode(text) if self.texts else b"null"]
        if field and self.reasoning:
            parts += (b',"', field.encode(), b'":', encode("\n\n".join(self.reasoning)))
        if calls:
            parts += (b',"tool_calls":[', b",".join(calls.values()), b"]")
        parts.append(b"}")
        for key in calls:
            parts += (b",", self.results.get(key) or tool_message(key, NO_RESULT))
        if self.images:
            parts += (b",", encode({"role": "user", "content": self.images}))
        return b"".join(parts)


class _Gap:
    """A place in the closed history where calls still wait for their results."""

    __slots__ = ("end", "start", "turn")

    def __init__(self, start: int, end: int, turn: _Turn) -> None:
        self.start = start
        self.end = end
        """What is closed of the turn stands between start and end."""
        self.turn = turn


class ChatHistory:
    """The encoded messages of one context."""

    def __init__(self, *, reasoning_field: str = "", hoist_system: bool = False) -> None:
        self.reasoning_field = reasoning_field
        """Under which name earlier reasoning goes back; empty: it does not."""
        self.hoist_system = hoist_system
        """Gather all system messages in one at the start, for servers that refuse them elsewhere."""
        self.consumed = 0
        """How many items of the context are in it."""
        self._last = ""
        self._closed = bytearray()
        self._turn = _Turn()
        self._gaps: dict[int, _Gap] = {}
        self._next_gap = 0
        self._pending: dict[str, int] = {}
        """Call id -> its gap."""
        self._answered: dict[str, int] = {}
        """Call id -> hash of its result."""
        self._system: list[str] = []
        self._instructions: tuple[str, bytes] = ("", b"")

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

    def messages(self, instructions: str | None = None, prefill: str = "") -> bytes:
        """All messages, encoded and joined by commas."""
        return b"".join(self.fragments(instructions, prefill))

    def fragments(self, instructions: str | None = None, prefill: str = "") -> list[bytes | bytearray]:
        """What `messages` joins. To be used at once: the history may grow afterwards."""
        parts: list[bytes | bytearray] = [self._head(instructions)]
        at = 0
        for gap in self._gaps.values():
            parts.append(self._piece(at, gap.start))
            parts.append(gap.turn.messages(self.reasoning_field, pending=True))
            at = gap.end
        parts.append(self._piece(at, len(self._closed)) if at else self._closed)
        parts.append(self._turn.messages(self.reasoning_field, pending=True))
        if prefill:
            parts.append(self._begun(prefill))
        joined: list[bytes | bytearray] = []
        for part in parts:
            if part:
                joined += (b",", part)
        return joined[1:]

    def _begun(self, prefill: str) -> bytes:
        """The assistant message to go on from, with the reasoning that came before it."""
        begun = _Turn()
        begun.texts.append(prefill)
        if not self._turn.texts and not self._turn.calls:
            begun.reasoning = self._turn.reasoning
        return begun.messages(self.reasoning_field, pending=True)

    def _piece(self, start: int, end: int) -> bytes:
        piece = bytes(self._closed[start:end])
        return piece[1:] if piece.startswith(b",") else piece

    def _head(self, instructions: str | None) -> bytes:
        text = "\n\n".join([*([instructions] if instructions else ()), *self._system])
        if text != self._instructions[0]:
            self._instructions = (text, encode({"role": "system", "content": text}))
        return self._instructions[1] if text else b""

    # What each kind of item becomes.

    def _add(self, item: Item, item_id: str) -> None:
        kind = item.get("type") or "message"
        if kind == "message":
            self._add_message(item)
        elif kind == "function_call":
            self._add_call(item, item_id, arguments_object(item.get("arguments")))
        elif kind == "custom_tool_call":
            self._add_call(item, item_id, encode({"input": item.get("input") or ""}).decode())
        elif kind in ("function_call_output", "custom_tool_call_output"):
            self._add_result(str(item.get("call_id") or ""), item.get("output"))
        elif kind == "reasoning":
            self._add_reasoning(plain_text(item.get("content")) or plain_text(item.get("summary")))
        elif kind not in SILENT:
            self._add_other(kind, item, item_id)

    def _add_message(self, item: Item) -> None:
        role = item.get("role")
        content = item.get("content")
        if role == "assistant":
            self._add_text("".join(_texts(content)))
        elif role in ("system", "developer"):
            text = plain_text(content)
            if self.hoist_system:
                self._system.append(text)
            else:
                self._close(b'{"role":"system","content":' + encode(text) + _named(item) + b"}")
        else:
            self._close(b'{"role":"user","content":' + encode(user_content(content)) + _named(item) + b"}")

    def _add_text(self, text: str) -> None:
        turn = self._turn
        if not text:
            return
        if turn.results or (turn.texts and not turn.calls):
            self._close_turn()
        self._turn.texts.append(text)

    def _add_reasoning(self, text: str) -> None:
        turn = self._turn
        if not text:
            return
        if turn.results:
            self._close_turn()
            turn = self._turn
        (turn.later if turn.texts and not turn.calls else turn.reasoning).append(text)

    def _add_call(self, item: Item, item_id: str, arguments: str) -> None:
        namespace, name = item.get("namespace"), str(item.get("name") or "tool")
        call_id = str(item.get("call_id") or item_id)
        self._call(call_id, told_name(name, namespace), arguments, item.get("extra"))

    def _call(self, call_id: str, name: str, arguments: str, extra: Any = None) -> None:
        if self._turn.results:
            self._close_turn()
        if call_id in self._pending:
            self._leave_gap(call_id)
        turn = self._turn
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        turn.calls[call_id] = encode({**extra, **call} if isinstance(extra, dict) else call)
        turn.reasoning += turn.later
        turn.later.clear()

    def _add_result(self, call_id: str, output: Any) -> None:
        text, images = tool_output(output)
        encoded = tool_message(call_id, text)
        turn = self._turn
        if call_id in turn.calls and call_id not in turn.results:
            pass
        elif call_id in self._pending:
            self._leave_gap(call_id, turn)
        else:
            self._add_stray_result(call_id, text, images, hash(encoded))
            return
        turn.results[call_id] = encoded
        self._answered[call_id] = hash(encoded)
        if images:
            turn.images += [{"type": "text", "text": f"Images returned by the tool call {call_id}:"}, *images]

    def _add_stray_result(self, call_id: str, text: str, images: list[dict[str, Any]], digest: int) -> None:
        """A result without a waiting call: repeated ones are dropped, others are told by the user."""
        known = self._answered.get(call_id)
        if known == digest:
            return
        told = f"{'Further result' if known is not None else 'Result'} of the tool call {call_id}:\n{text}"
        content = [{"type": "text", "text": told}, *images] if images else told
        self._close(encode({"role": "user", "content": content}))

    def _add_other(self, kind: str, item: Item, item_id: str) -> None:
        told = told_in_general(kind, item, item_id)
        if told.name is not None:
            self._call(told.call_id, told.name, told.arguments)
        if told.output is not None:
            self._add_result(told.call_id, told.output)
        if told.text:
            self._close(encode({"role": "user", "content": told.text}))

    # Closing, and calls that wait.

    def _close(self, message: bytes) -> None:
        """Add a message that ends the assistant's turn; reasoning that nothing followed is left out."""
        self._close_turn()
        self._turn.reasoning.clear()
        self._append(message)

    def _append(self, messages: bytes) -> None:
        if self._closed:
            self._closed += b","
        self._closed += messages

    def _close_turn(self) -> None:
        turn = self._turn
        start = len(self._closed)
        if closed := turn.messages(self.reasoning_field, pending=False):
            self._append(closed)
        waiting = [call_id for call_id in turn.calls if call_id not in turn.results]
        if waiting:
            self._gaps[self._next_gap] = _Gap(start, len(self._closed), turn)
            self._pending.update(dict.fromkeys(waiting, self._next_gap))
            self._next_gap += 1
        self._turn = _Turn()
        self._turn.reasoning += turn.later

    def _leave_gap(self, call_id: str, to: _Turn | None = None) -> None:
        """Take a pending call out of its place and, given a turn, put it there."""
        key = self._pending.pop(call_id)
        gap = self._gaps[key]
        call = gap.turn.calls.pop(call_id)
        if to is not None:
            to.calls[call_id] = call
            if gap.start == gap.end:
                to.reasoning[:0] = gap.turn.reasoning
                gap.turn.reasoning = []
        if all(other in gap.turn.results for other in gap.turn.calls):
            del self._gaps[key]


def tool_message(call_id: str, text: str) -> bytes:
    return b'{"role":"tool","tool_call_id":' + encode(call_id) + b',"content":' + encode(text) + b"}"


def _named(item: Item) -> bytes:
    """The field that tells participants of one role apart."""
    name = item.get("name")
    return b',"name":' + encode(name) if isinstance(name, str) and name else b""


def _texts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [part_text(part) for part in content if isinstance(part, dict)] if isinstance(content, list) else []
