"""Programs that have no output yet, as a fold of items: what they called, what was answered, what they wait for. Pure.

A program belongs to the model, its calls belong to the program: they stand in the branch as items with a `caller`, and
the model never sees them. What a program is told of a call follows from these items alone, whether they come from the
journal or from a client that keeps its history itself; so a replay is told the same.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from stateroom.agent.compaction import COMPACTION
from stateroom.agent.hosted import is_client_call, told_error
from stateroom.agent.pairs import call_id_of, is_result
from stateroom.journal.entries import ContextItem, Item
from stateroom.journal.hosted_items import APPROVAL_REQUEST, APPROVAL_RESPONSE, PROGRAM, caller_of

PROGRAM_OUTPUT: Final = "program_output"


class NestedCall(msgspec.Struct, frozen=True):
    """A call that a program made."""

    call: ContextItem | None = None
    """None as long as only an approval was asked for."""
    request: ContextItem | None = None
    """The request for an approval, if there had to be one."""
    decided: bool = False
    """Somebody answered that request."""
    result: ContextItem | None = None
    """The item of its result, for calls that have one."""

    @property
    def waits(self) -> bool:
        """Whether its client has to answer."""
        if self.call is None:
            return not self.decided
        return self.result is None and is_client_call(self.call.item)


class OpenProgram(msgspec.Struct, frozen=True):
    """A program without an output."""

    held: ContextItem
    calls: dict[str, NestedCall] = {}
    """By the ids that the engine gave them, in order."""
    overtaken: bool = False
    """A user said something since the last of it."""

    @property
    def call_id(self) -> str:
        return str(self.held.item["call_id"])

    @property
    def waits(self) -> list[str]:
        """Ids of calls, or of requests for an approval, that its client has to answer before it can go on."""
        return [
            call_id if nested.call is not None or nested.request is None else nested.request.id
            for call_id, nested in self.calls.items()
            if nested.waits
        ]


OpenPrograms = dict[str, OpenProgram]
"""By `call_id`."""


BEGINNING: Final = frozenset({PROGRAM, COMPACTION})
"""Types of items that may bring programs into a fold that has none."""


def take(programs: OpenPrograms, held: ContextItem) -> None:
    """Take in the next item of a branch, or an item that has changed."""
    item = held.item
    kind = item.get("type", "message")
    if kind == COMPACTION:
        for position, inner in enumerate(carried_items(item)):
            take(programs, ContextItem(inner.get("id") or f"{held.id}/p{position}", inner, held.seq))
    elif kind == PROGRAM:
        if item.get("status") != "incomplete":  # one that was cut off is never run
            programs[item["call_id"]] = OpenProgram(held)
    elif not programs:
        return
    elif kind == PROGRAM_OUTPUT:
        programs.pop(call_id_of(item), None)
    elif kind == "message":
        if item.get("role") == "user":
            for call_id, program in programs.items():
                programs[call_id] = msgspec.structs.replace(program, overtaken=True)
    elif kind == APPROVAL_RESPONSE:
        _take_decision(programs, item)
    elif is_result(item):
        _take_result(programs, held)
    elif caller_of(item) in programs and call_id_of(item):
        name = "request" if kind == APPROVAL_REQUEST else "call"
        _change(programs, caller_of(item), call_id_of(item), {name: held})


def carried_items(compaction: Item) -> list[Item]:
    """The items of programs that a compaction item brings along, for where they are not there already."""
    compacted = compaction.get("compacted")
    return compacted.get("programs") or [] if isinstance(compacted, dict) else []


def to_carry(programs: OpenPrograms) -> list[Item]:
    """All items of the programs that wait, with their ids, in an order in which they can be taken in again."""
    found: list[ContextItem] = []
    for program in programs.values():
        found.append(program.held)
        for nested in program.calls.values():
            found += [each for each in (nested.request, nested.call, nested.result) if each is not None]
    return [{**_bare(held.item), "id": held.id} for held in found]


_NO_TEXT: Final = frozenset({"image", "input_image", "input_file", "computer_screenshot"})
"""Types of parts of an answer that programs are not given."""


def _bare(item: Item) -> Item:
    kept = {name: _texts(item[name]) for name in ("output", "outputs") if isinstance(item.get(name), list)}
    return {**item, **kept}


def _texts(parts: list[Any]) -> list[Any]:
    return [part for part in parts if not isinstance(part, dict) or part.get("type") not in _NO_TEXT]


def _take_result(programs: OpenPrograms, held: ContextItem) -> None:
    call_id = call_id_of(held.item)
    owner = next((program.call_id for program in programs.values() if call_id in program.calls), "")
    if owner:
        _change(programs, owner, call_id, {"result": held})


def _take_decision(programs: OpenPrograms, item: Item) -> None:
    for program in list(programs.values()):
        for call_id, nested in program.calls.items():
            if nested.request is not None and nested.request.id == item["approval_request_id"]:
                _change(programs, program.call_id, call_id, {"decided": True})
                return


def _change(programs: OpenPrograms, owner: str, call_id: str, fields: dict[str, Any]) -> None:
    program = programs[owner]
    nested = msgspec.structs.replace(program.calls.get(call_id, NestedCall()), **fields)
    programs[owner] = OpenProgram(program.held, {**program.calls, call_id: nested})


def answer_of(nested: NestedCall) -> tuple[str, bool]:
    """What a program is told of a call that has come to its end, and whether that is a failure."""
    call = nested.call.item if nested.call is not None else {}
    result = nested.result.item if nested.result is not None else {}
    kind, status = call.get("type"), call.get("status", "completed")
    if kind == "shell_call":
        return _told_shell(result)
    if kind == "apply_patch_call":
        return str(result.get("output") or ""), result.get("status") == "failed"
    if kind == "code_interpreter_call":
        outputs = [each for each in call.get("outputs") or () if isinstance(each, dict)]
        logs = "\n".join([str(each.get("logs", "")) for each in outputs if each.get("type") == "logs"])
        return logs, status in ("failed", "incomplete")
    if kind == "mcp_call":
        error = call.get("error")
        return (told_error(error), True) if error else (str(call.get("output") or ""), False)
    if kind == "tool_search_call":
        return msgspec.json.encode({"tools": result.get("tools") or []}).decode(), status != "completed"
    if nested.result is not None:
        return _text_of(result.get("output")), False
    return str(call.get("output") or ""), status != "completed"


def _told_shell(result: Item) -> tuple[str, bool]:
    """The whole output as JSON, since a program wants it in parts. What a command says is no failure of the call."""
    chunks = [chunk for chunk in result.get("output") or () if isinstance(chunk, dict)]
    if result.get("status") == "incomplete":
        return "\n".join([str(chunk.get("stderr") or "") for chunk in chunks]), True
    told = [
        {
            "stdout": str(chunk.get("stdout") or ""),
            "stderr": str(chunk.get("stderr") or ""),
            "outcome": _without_nulls(chunk.get("outcome") or {}),
        }
        for chunk in chunks
    ]
    return msgspec.json.encode({"output": told}).decode(), False


def _text_of(output: Any) -> str:
    if not isinstance(output, list):
        return str(output if output is not None else "")
    return "\n".join([str(part["text"]) for part in _texts(output) if isinstance(part, dict) and "text" in part])


_CALLED: Final = ("name", "namespace", "server_label", "input", "arguments", "action", "operation", "code")
"""Fields in which a call says what is called, and with what."""


def same_call(made: Item, recorded: Item) -> bool:
    """Whether a call of a replay is the one that was made before. Spelling and nulls do not matter."""
    return _called(made) == _called(recorded)


def _called(item: Item) -> dict[str, Any]:
    kind = "mcp_call" if item.get("type") == APPROVAL_REQUEST else item.get("type")
    said = {name: _read(item[name]) if name == "arguments" else item[name] for name in _CALLED if item.get(name)}
    return {
        "type": kind,
        **{name: _without_nulls(value) if isinstance(value, dict) else value for name, value in said.items()},
    }


def _read(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        return msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return arguments


def _without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    return {name: inner for name, inner in value.items() if inner is not None}
