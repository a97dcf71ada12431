"""Chat messages to and from items: what a chat says in one assistant message is a row of items here. Pure.

An assistant message becomes reasoning, a message and its calls; a tool message becomes the output of a call. On the way
back they are gathered again: consecutive assistant messages that hold nothing but calls come back as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Item
from stateroom.wire import chat_completions_parameters as shapes
from stateroom.wire.decoding import Bounds, validate

_PLAIN_ROLES: Final = ("user", "system", "developer", "assistant")
SHAPES: Final[dict[str, type[Any]]] = {
    "user": shapes.TextMessage,
    "system": shapes.TextMessage,
    "developer": shapes.TextMessage,
    "assistant": shapes.AssistantMessage,
    "tool": shapes.ToolMessage,
    "function": shapes.FunctionMessage,
}
PARTS: Final[dict[str, type[Any]]] = {
    "text": shapes.TextPart,
    "refusal": shapes.RefusalPart,
    "image_url": shapes.ImagePart,
    "file": shapes.FilePart,
}
ALLOWED_PARTS: Final[dict[str, frozenset[str]]] = {
    "user": frozenset(("text", "image_url", "file")),
    "system": frozenset(("text",)),
    "developer": frozenset(("text",)),
    "assistant": frozenset(("text", "refusal")),
    "tool": frozenset(("text", "image_url")),
}
"""Images in a tool's result are more than OpenAI takes; clients send them."""

_CALL_FIELDS: Final = frozenset(("id", "type", "function", "custom", "index"))


class Messages:
    """The messages of one request as items, while they are being read."""

    def __init__(self, bounds: Bounds) -> None:
        self.items: list[Item] = []
        self.places: list[str] = []
        """Where each of the items stands in the request."""
        self._bounds = bounds
        self._custom: set[str] = set()
        """Ids of the calls of custom tools."""
        self._legacy: list[tuple[str, str]] = []
        """Name and id of the calls without an id of their own that wait for their result."""

    def add(self, message: Mapping[str, Any], position: int) -> None:
        """Take the next message. Raises InvalidRequest."""
        path = f"messages[{position}]"
        role, content = message.get("role"), message.get("content")
        if len(message) == 2 and type(content) is str and role in _PLAIN_ROLES:
            self._put({"role": role, "content": content}, path)
            return
        shape = SHAPES.get(role) if isinstance(role, str) else None
        if shape is None:
            _refuse_role(role, path)
        validate(message, shape, path)
        if role == "assistant":
            self._assistant(message, path, position)
        elif role == "tool":
            self._tool(message, path)
        elif role == "function":
            self._function(message, path)
        else:
            item: Item = {"role": role, "content": self._content(content, str(role), path)}
            if message.get("name"):
                item["name"] = message["name"]
            self._put(item, path)

    def _put(self, item: Item, path: str) -> None:
        self.items.append(item)
        self.places.append(path)

    def _assistant(self, message: Mapping[str, Any], path: str, position: int) -> None:
        if message.get("audio") is not None:
            raise unsupported(f"{path}.audio", "This server makes no audio: send what was said as 'content'.")
        if message.get("reasoning_content"):
            thought = {"type": "reasoning_text", "text": message["reasoning_content"]}
            self._put({"type": "reasoning", "content": [thought]}, path)
        content = self._content(message.get("content"), "assistant", path)
        if message.get("refusal"):
            said = [{"type": "output_text", "text": content}] if isinstance(content, str) and content else content or []
            content = [*said, {"type": "refusal", "refusal": message["refusal"]}]
        calls, legacy = message.get("tool_calls") or [], message.get("function_call")
        if content or not (calls or legacy):
            item: Item = {"role": "assistant", "content": content or ""}
            if message.get("name"):
                item["name"] = message["name"]
            self._put(item, path)
        for number, call in enumerate(calls):
            self._put(self._call(call, f"{path}.tool_calls[{number}]"), f"{path}.tool_calls[{number}]")
        if legacy is not None:
            call_id = f"call_message_{position}"
            self._legacy.append((legacy["name"], call_id))
            self._put(
                {
                    "type": "function_call",
                    "call_id": call_id,
                    "name": legacy["name"],
                    "arguments": legacy["arguments"],
                },
                path,
            )

    def _call(self, call: Mapping[str, Any], path: str) -> Item:
        kind = call.get("type") or ("custom" if "custom" in call else "function")
        if kind == "custom":
            validate(call, shapes.CustomToolCall, path)
            self._custom.add(call["id"])
            made = {
                "type": "custom_tool_call",
                "call_id": call["id"],
                "name": call["custom"]["name"],
                "input": call["custom"]["input"],
            }
        elif kind == "function":
            validate(call, shapes.FunctionToolCall, path)
            made = {
                "type": "function_call",
                "call_id": call["id"],
                "name": call["function"]["name"],
                "arguments": call["function"]["arguments"],
            }
        else:
            raise _invalid(f"'{path}.type' must be 'function' or 'custom'.", f"{path}.type")
        extra = {name: value for name, value in call.items() if name not in _CALL_FIELDS and value is not None}
        return {**made, "extra": extra} if extra else made

    def _tool(self, message: Mapping[str, Any], path: str) -> None:
        call_id = message["tool_call_id"]
        kind = "custom_tool_call_output" if call_id in self._custom else "function_call_output"
        output = self._content(message.get("content"), "tool", path)
        self._put({"type": kind, "call_id": call_id, "output": output or ""}, path)

    def _function(self, message: Mapping[str, Any], path: str) -> None:
        waiting = next((call for call in self._legacy if call[0] == message["name"]), None)
        if waiting is None:
            raise _invalid(f"'{path}' is the result of a function that was not called before it.", f"{path}.name")
        self._legacy.remove(waiting)
        output = message.get("content") or ""
        self._put({"type": "function_call_output", "call_id": waiting[1], "output": output}, path)

    def _content(self, content: Any, role: str, path: str) -> Any:
        """Packed content: a string where there is a single text."""
        if not isinstance(content, list):
            return content
        if len(content) > self._bounds.content_parts:
            raise InvalidRequest(
                f"'{path}.content' holds {len(content)} content parts; at most {self._bounds.content_parts} are allowed"
                " (`limits.content_parts`).",
                code="array_above_max_length",
                param=f"{path}.content",
            )
        parts = [_pack_part(part, role, f"{path}.content[{number}]") for number, part in enumerate(content)]
        if len(parts) == 1 and parts[0]["type"] in ("input_text", "output_text"):
            return parts[0]["text"]
        return parts


def _pack_part(part: Mapping[str, Any], role: str, path: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "input_audio":
        raise unsupported(path, "This server hears no audio: send the text of it.")
    if not isinstance(kind, str) or kind not in ALLOWED_PARTS[role]:
        allowed = ", ".join(f"'{name}'" for name in sorted(ALLOWED_PARTS[role]))
        raise _invalid(f"'{path}.type' must be one of {allowed} in a message of role '{role}'.", f"{path}.type")
    validate(part, PARTS[kind], path)
    if kind == "text":
        return {"type": "output_text" if role == "assistant" else "input_text", "text": part["text"]}
    if kind == "refusal":
        return {"type": "refusal", "refusal": part["refusal"]}
    if kind == "image_url":
        image = part["image_url"]
        packed = {"type": "input_image", "image_url": image["url"]}
        if image.get("detail") not in (None, "auto"):
            packed["detail"] = image["detail"]
        return packed
    held = part["file"]
    if not (held.get("file_id") or held.get("file_data")):
        raise InvalidRequest(
            f"'{path}.file' needs one of 'file_id', 'file_data'.",
            code="missing_required_parameter",
            param=f"{path}.file.file_id",
        )
    given = {name: held[name] for name in ("file_id", "file_data", "filename") if held.get(name)}
    return {"type": "input_file", **given}


def _refuse_role(role: Any, path: str) -> NoReturn:
    if role is None:
        raise InvalidRequest(
            f"Missing required parameter: '{path}.role'.", code="missing_required_parameter", param=f"{path}.role"
        )
    known = ", ".join(f"'{name}'" for name in SHAPES)
    raise _invalid(f"'{path}.role' must be one of {known}.", f"{path}.role")


def _invalid(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_value", param=param)


def unsupported(name: str, advice: str) -> InvalidRequest:
    """What this server cannot do is said, not dropped."""
    return InvalidRequest(f"'{name}' is not supported here. {advice}", code="unsupported_parameter", param=name)


# Back again.


def show_messages(items: Sequence[Item]) -> list[dict[str, Any]]:
    """The messages that these items were. Images have to be in place."""
    messages: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None
    for item in items:
        kind = item.get("type", "message")
        if kind == "reasoning":
            turn = {"role": "assistant", "content": None, "reasoning_content": reasoning_text(item)}
            messages.append(turn)
        elif kind == "message" and item["role"] == "assistant":
            if turn is None or "tool_calls" in turn or turn["content"] is not None:
                turn = {"role": "assistant", "content": None}
                messages.append(turn)
            turn.update(_assistant_fields(item))
        elif kind in ("function_call", "custom_tool_call"):
            if turn is None:
                turn = {"role": "assistant", "content": None}
                messages.append(turn)
            turn.setdefault("tool_calls", []).append(show_call(item))
        else:
            turn = None
            if kind.endswith("_output"):
                messages.append({"role": "tool", "tool_call_id": item["call_id"], **_content_fields(item["output"])})
            elif kind == "message":
                named = {"name": item["name"]} if "name" in item else {}
                messages.append({"role": item["role"], **_content_fields(item["content"]), **named})
    return messages


def _assistant_fields(item: Item) -> dict[str, Any]:
    content = item["content"]
    if isinstance(content, str):
        return {"content": content}
    text, refusal = spoken(item), refused(item)
    return {"content": text or None, **({"refusal": refusal} if refusal else {})}


def _content_fields(content: Any) -> dict[str, Any]:
    """The text, and the parts where there are several."""
    if isinstance(content, str):
        return {"content": content}
    parts = [_show_part(part) for part in content]
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    return {"content": text or None, "content_parts": parts}


def _show_part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "input_image":
        shown = {"url": part.get("image_url") or ""}
        return {"type": "image_url", "image_url": {**shown, "detail": part.get("detail", "auto")}}
    if kind == "input_file":
        held = {name: part[name] for name in ("file_id", "file_data", "filename") if name in part}
        return {"type": "file", "file": held}
    return {"type": "text", "text": part.get("text", "")}


def spoken(item: Item) -> str:
    """The visible text of an assistant's message."""
    content = item.get("content")
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content or () if part.get("type") == "output_text")


def refused(item: Item) -> str:
    """The refusal in an assistant's message; '' when there is none."""
    content = item.get("content")
    if isinstance(content, str):
        return ""
    return "".join(part["refusal"] for part in content or () if part.get("type") == "refusal")


def reasoning_text(item: Item) -> str:
    """What can be read of a reasoning item: the reasoning itself, or what was told of it."""
    parts = item.get("content") or item.get("summary") or ()
    return "\n\n".join(part.get("text", "") for part in parts)


def show_call(item: Item) -> dict[str, Any]:
    """A call as it stands in `tool_calls`, with the unknown fields that have to come back with it."""
    shown = {**(item.get("extra") or {}), "id": item["call_id"]}
    if item["type"] == "custom_tool_call":
        return {**shown, "type": "custom", "custom": {"name": item["name"], "input": item.get("input", "")}}
    return {
        **shown,
        "type": "function",
        "function": {"name": item["name"], "arguments": item.get("arguments", "")},
    }


def check_sizes(items: Sequence[Item], places: Sequence[str], bounds: Bounds) -> None:
    """Refuse an item that is larger than one may be. Raises InvalidRequest."""
    for item, place in zip(items, places, strict=True):
        if len(msgspec.json.encode(item)) > bounds.item_bytes:
            raise InvalidRequest(
                f"'{place}' is larger than {bounds.item_bytes} bytes (`limits.item_bytes`).",
                code="item_too_large",
                param=place,
            )
