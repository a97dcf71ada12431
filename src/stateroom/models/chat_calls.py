"""Tool calls out of the pieces that chat servers send them in. Pure.

Servers differ: calls come whole or in pieces, one after the other or interleaved, with an index that is always 0,
without an id, with the id on every piece, with arguments as an object. A call is known by (index, id); a new id on the
same index is a new call; what has no id gets one.
"""

from __future__ import annotations

from typing import Any

import msgspec

from stateroom import ids
from stateroom.models.backend import ToolCallDelta

_KNOWN = frozenset({"index", "id", "type", "function"})

_encode = msgspec.json.Encoder().encode


class _Call:
    """A call in the making."""

    __slots__ = ("call_id", "given_id", "key", "name", "pieces")

    def __init__(self, key: int) -> None:
        self.key = key
        self.given_id = ""
        """The server's own id; empty when it gave none."""
        self.call_id = ""
        """Set when the call was first given out."""
        self.name = ""
        self.pieces: list[str] = []

    def excludes(self, name: str, arguments: str) -> bool:
        """Whether a piece with this name and these arguments must be of another call."""
        if not name or not self.name:
            return False
        return name != self.name or (bool(arguments) and self._is_whole())

    def _is_whole(self) -> bool:
        if not self.pieces or not self.pieces[-1].rstrip().endswith("}"):
            return False
        try:
            return isinstance(msgspec.json.decode("".join(self.pieces)), dict)
        except (ValueError, RecursionError):
            return False


class ToolCalls:
    """The calls of one answer."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        self._by_index: dict[int | None, _Call] = {}
        """The latest call of each index; under None the latest of all."""
        self._by_id: dict[tuple[int | None, str], _Call] = {}
        self._used_ids: set[str] = set()

    def add(self, pieces: Any) -> list[ToolCallDelta]:
        """The deltas that a `tool_calls` value of a chunk or a message makes."""
        listed = pieces if isinstance(pieces, list) else [pieces]
        return [delta for piece in listed if isinstance(piece, dict) for delta in self._piece(piece)]

    def add_legacy(self, piece: Any) -> list[ToolCallDelta]:
        """The same for the old `function_call`, of which there is one."""
        return self.add({"index": -1, "function": piece}) if isinstance(piece, dict) else []

    def end(self) -> list[ToolCallDelta]:
        """What is still missing: calls without any arguments get an empty object."""
        return [ToolCallDelta(call.key, arguments="{}") for call in self._calls if call.name and not any(call.pieces)]

    def _piece(self, piece: dict[str, Any]) -> list[ToolCallDelta]:
        function = piece.get("function")
        function = function if isinstance(function, dict) else {}
        name = _string(function.get("name"))
        arguments = _arguments(function.get("arguments"))
        index = piece.get("index")
        call = self._find(index if isinstance(index, int) else None, _string(piece.get("id")), name, arguments)
        extra = {field: value for field, value in piece.items() if field not in _KNOWN and value is not None}
        if arguments:
            call.pieces.append(arguments)
        if call.call_id:
            if not arguments and not extra:
                return []
            return [ToolCallDelta(call.key, arguments=arguments, extra=extra or None)]
        call.name = call.name or name
        if not call.name:
            return []
        call.call_id = self._fresh(call.given_id)
        return [ToolCallDelta(call.key, call.call_id, call.name, "".join(call.pieces), extra or None)]

    def _find(self, index: int | None, given_id: str, name: str, arguments: str) -> _Call:
        """The call that a piece belongs to, or a new one."""
        current = self._by_id.get((index, given_id))
        if current is None:
            latest = self._by_index.get(index)
            if latest is not None and not (given_id and latest.given_id):
                current = latest
        if current is None or current.excludes(name, arguments):
            current = _Call(len(self._calls))
            self._calls.append(current)
            self._by_index[index] = self._by_index[None] = current
        if given_id:
            current.given_id = given_id
            self._by_id[index, given_id] = current
        return current

    def _fresh(self, given_id: str) -> str:
        """The server's id, unless it has given it to another call of this answer."""
        call_id = given_id if given_id and given_id not in self._used_ids else ids.new_id("call")
        self._used_ids.add(call_id)
        return call_id


def _string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _arguments(value: Any) -> str:
    """Arguments as text; objects become JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else _encode(value).decode()
