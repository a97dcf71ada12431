"""Calls that the runtime itself carries out: how their items are recognised, what a model reads of them, how they end.

Models know functions only. An item of a hosted tool is told as a call of the function under which the tool is offered,
and its result as that call's result, whoever carried it out: a `shell_call` that a client ran is told in the same way.
Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from stateroom.journal.entries import ContextItem, Item
from stateroom.journal.hosted_items import (
    APPROVAL_REQUEST,
    APPROVAL_RESPONSE,
    CLIENT_CALLS,
    HOSTED,
    HOSTED_CALL,
    LISTING,
    LOCAL_SHELL,
    PATCH,
    PROGRAM,
    PYTHON,
    SEARCH,
    SHELL,
)

_ENCODE: Final = msgspec.json.Encoder().encode


def tool_of(item: Item) -> str:
    """Which hosted tool carries out the call that this item is; '' when the runtime does not."""
    named: str = item.get(HOSTED) or (item["tool"] if item.get("type") == HOSTED_CALL else "")
    return named


def is_client_call(item: Item) -> bool:
    """Whether the client is to answer it."""
    return item.get("type") in CLIENT_CALLS and not item.get(HOSTED)


def flat_tool(label: str, name: str) -> str:
    """Under which name a model knows a tool of an MCP server, before it is made fit for models' servers."""
    return f"{label}__{name}"


def as_function(held: ContextItem) -> Iterator[ContextItem] | None:
    """The item as a call of a function, its result, or both; None for items that are nothing of the kind."""
    tell = _TOLD.get(held.item.get("type", "message"))
    return tell(held) if tell is not None else None


def ending(item: Item, text: str, *, failed: bool, unknown: bool = False) -> tuple[dict[str, Any], Item | None]:
    """How a call ends of which there is nothing but a text: what its item gains, and the item of its result."""
    kind, call_id = item.get("type"), item.get("call_id", "")
    status = "incomplete" if unknown else "failed" if failed else "completed"
    if kind == "shell_call":
        outcome = {"type": "exit", "exit_code": -1 if unknown else 1 if failed else 0}
        chunk = {"stdout": "" if failed or unknown else text, "stderr": text if failed or unknown else ""}
        result: Item = {"type": "shell_call_output", "call_id": call_id, "output": [{**chunk, "outcome": outcome}]}
        if unknown or failed:  # no command has said this: a program must not take it for one that did
            result["status"] = "incomplete"
        return {}, result
    if kind == "apply_patch_call":
        result = {"type": "apply_patch_call_output", "call_id": call_id, "output": text}
        return {}, {**result, "status": "failed" if failed or unknown else "completed"}
    if kind == "code_interpreter_call":
        return {"outputs": [{"type": "logs", "logs": text}], "status": status}, None
    if kind == "mcp_call":
        if not failed and not unknown:
            return {"output": text}, None
        content = [{"type": "text", "text": text}]
        return {"error": {"type": "mcp_tool_execution_error", "content": content}, "status": status}, None
    if kind == "tool_search_call":
        result = {"type": "tool_search_output", "call_id": call_id, "tools": []}
        return ({"status": "incomplete"} if unknown or failed else {}), result
    if kind == PROGRAM:
        result = {"type": "program_output", "call_id": call_id, "result": text}
        return {}, {**result, "status": "incomplete"} if unknown or failed else result
    return {"output": text, "status": status}, None


def _call(held: ContextItem, name: str, arguments: Any, call_id: str = "") -> ContextItem:
    text = arguments if isinstance(arguments, str) else _ENCODE(arguments).decode()
    called = call_id or held.item.get("call_id") or held.id
    return ContextItem(held.id, {"type": "function_call", "call_id": called, "name": name, "arguments": text}, held.seq)


def _result(held: ContextItem, output: Any, *, beside: bool = False) -> ContextItem:
    """The result of a call; `beside` when it stands in the item of the call itself."""
    called = held.item.get("call_id") or held.id
    identifier = held.id + "o" if beside else held.id
    return ContextItem(identifier, {"type": "function_call_output", "call_id": called, "output": output}, held.seq)


def _given(item: Item, otherwise: Any) -> Any:
    """What the model wrote, where that was no sense and could not be put into the item's own fields."""
    return item.get("malformed", otherwise)


def _generic(held: ContextItem) -> Iterator[ContextItem]:
    yield _call(held, held.item["name"], held.item.get("arguments", ""))
    yield _result(held, held.item.get("output", ""), beside=True)


def _shell_call(held: ContextItem) -> Iterator[ContextItem]:
    action = held.item["action"]
    asked = {name: action[name] for name in ("commands", "timeout_ms", "max_output_length") if action.get(name)}
    yield _call(held, SHELL, _given(held.item, asked))


def _shell_output(held: ContextItem) -> Iterator[ContextItem]:
    told = [_told_chunk(chunk) or "[no output]" for chunk in held.item["output"] if isinstance(chunk, Mapping)]
    if len(told) > 1:  # the model must see which command said what
        told = [f"[command {number}]\n{said}" for number, said in enumerate(told, 1)]
    yield _result(held, "\n".join(told))


def _told_chunk(chunk: Mapping[str, Any]) -> str:
    """What one command said, and how it ended where that was not well."""
    outcome = chunk.get("outcome") or {}
    told = [str(chunk.get("stdout") or "").rstrip("\n")]
    if chunk.get("stderr"):
        told.append("[stderr]\n" + str(chunk["stderr"]).rstrip("\n"))
    if outcome.get("type") == "timeout":
        told.append("[it took too long and was ended]")
    elif outcome.get("exit_code"):
        told.append(f"[exit code {outcome['exit_code']}]")
    return "\n".join([part for part in told if part])


def _local_shell_call(held: ContextItem) -> Iterator[ContextItem]:
    action = held.item["action"]
    asked = {name: value for name, value in action.items() if name != "type" and value}
    yield _call(held, LOCAL_SHELL, _given(held.item, asked))


def _local_shell_output(held: ContextItem) -> Iterator[ContextItem]:
    if held.item.get("call_id"):
        yield _result(held, held.item["output"])
    else:
        said = f"[output of a command]\n{held.item['output']}"
        yield ContextItem(held.id, {"role": "user", "content": said}, held.seq)


def _patch_call(held: ContextItem) -> Iterator[ContextItem]:
    yield _call(held, PATCH, _given(held.item, {"operation": held.item["operation"]}))


def _patch_output(held: ContextItem) -> Iterator[ContextItem]:
    told = held.item.get("output") or ""
    failed = held.item.get("status") == "failed"
    yield _result(held, f"Failed: {told}" if failed else told or "Done.")


def _code_call(held: ContextItem) -> Iterator[ContextItem]:
    yield _call(held, PYTHON, _given(held.item, {"code": held.item.get("code") or ""}))
    outputs = held.item.get("outputs") or ()
    logs = "\n".join([str(each.get("logs", "")) for each in outputs if each.get("type") == "logs"])
    images = sum(each.get("type") == "image" for each in outputs)
    shown = f"[{images} image{'s' * (images > 1)} shown to the user]" if images else ""
    note = held.item.get("note") or ""
    yield _result(held, "\n".join([part for part in (logs, shown, note) if part]) or "[no output]", beside=True)


def _mcp_call(held: ContextItem) -> Iterator[ContextItem]:
    item = held.item
    yield _call(
        held, item.get("called") or flat_tool(item["server_label"], item["name"]), item.get("arguments") or "{}"
    )
    error = item.get("error")
    told = item.get("output") or ""
    if error:
        told = f"Error: {told_error(error)}" + (f"\n{told}" if told else "")
    yield _result(held, told, beside=True)


def told_error(error: Any) -> str:
    """The `error` of an `mcp_call` as text."""
    if not isinstance(error, Mapping):
        return str(error)
    content = error.get("content")
    if isinstance(content, list):
        texts = [str(part.get("text", "")) for part in content if isinstance(part, Mapping)]
        return "\n".join([text for text in texts if text]) or "the tool failed"
    return str(error.get("message") or error.get("type") or "the tool failed")


def _search_call(held: ContextItem) -> Iterator[ContextItem]:
    if held.item.get("call_id"):
        yield _call(held, SEARCH, _given(held.item, held.item.get("arguments") or {}))


def _search_output(held: ContextItem) -> Iterator[ContextItem]:
    if held.item.get("call_id"):
        names = [name for tool in held.item["tools"] for name in _names(tool)]
        yield _result(held, f"Found: {', '.join(names)}. They can be called now." if names else "Found nothing.")


def _names(tool: Any) -> Iterator[str]:
    if not isinstance(tool, Mapping):
        return
    if tool.get("type") == "namespace":
        for inner in tool.get("tools") or ():
            for name in _names(inner):
                yield f"{tool.get('name')}__{name}"
    elif tool.get("type") == "mcp":
        for name in tool.get("allowed_tools") or ():
            yield flat_tool(str(tool.get("server_label")), str(name))
    elif tool.get("name"):
        yield str(tool["name"])


def _program_call(held: ContextItem) -> Iterator[ContextItem]:
    yield _call(held, PROGRAM, _given(held.item, {"code": held.item.get("code") or ""}))


def _program_output(held: ContextItem) -> Iterator[ContextItem]:
    yield _result(held, held.item.get("result") or "")


def _nothing(held: ContextItem) -> Iterator[ContextItem]:
    return iter(())


_TOLD: Final[dict[str, Callable[[ContextItem], Iterator[ContextItem]]]] = {
    HOSTED_CALL: _generic,
    "shell_call": _shell_call,
    "shell_call_output": _shell_output,
    "local_shell_call": _local_shell_call,
    "local_shell_call_output": _local_shell_output,
    "apply_patch_call": _patch_call,
    "apply_patch_call_output": _patch_output,
    "code_interpreter_call": _code_call,
    "mcp_call": _mcp_call,
    "tool_search_call": _search_call,
    "tool_search_output": _search_output,
    "program": _program_call,
    "program_output": _program_output,
    LISTING: _nothing,
    APPROVAL_REQUEST: _nothing,
    APPROVAL_RESPONSE: _nothing,
}
