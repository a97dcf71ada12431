"""What goes into the engine of programs and what comes out of it. Plain records; nothing here runs anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec


class ProgramTool(msgspec.Struct, frozen=True):
    """A tool that programs may call."""

    name: str
    """As the client declared it; a tool of a namespace or an MCP server has a name that says so, `label__name`."""
    description: str = ""
    parameters: dict[str, Any] | None = None
    """JSON schema of the one object it takes. None: it takes text, as custom tools do."""
    output_schema: dict[str, Any] | None = None
    """What it answers with. Without it, an answer that is a JSON object or list is one, and everything else is text."""


class ProgramCall(msgspec.Struct, frozen=True):
    """A call that a program made."""

    position: int
    """The how-manyeth call of the program it is, from 0: the same in every replay."""
    name: str
    arguments: str
    """JSON of an object, or the text itself when the tool takes text."""
    call_id: str
    """Follows from the fingerprint and the position: the same in every replay, and no other program's."""


class Answered(msgspec.Struct, frozen=True):
    """A call of an earlier segment and what it was answered with. It is not made again."""

    call_id: str
    name: str
    arguments: str
    result: str
    failed: bool = False


class ProgramAnswer(msgspec.Struct, frozen=True):
    """What a tool said."""

    result: str
    failed: bool = False
    """The program gets an exception with `result` as its message."""


class Pending(msgspec.Struct, frozen=True):
    """Somebody else has to answer, later: the program is put away once nothing else can be done."""


Caller = Callable[[ProgramCall], Awaitable[ProgramAnswer | Pending]]
Same = Callable[[ProgramCall, Answered], bool]


def same_text(call: ProgramCall, answered: Answered) -> bool:
    """A call is the same when its name and its arguments are, letter by letter."""
    return (call.name, call.arguments) == (answered.name, answered.arguments)


class ProgramLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How far a program may go. Time spent waiting for tools does not count."""

    code_bytes: int = 256 * 1024
    cpu_seconds: float = 5.0
    """Of one segment."""
    wall_seconds: float = 30.0
    """Of one segment; longer than the processor time only on a machine that is busy."""
    memory_bytes: int = 128 * 1024 * 1024
    stack_bytes: int = 1024 * 1024
    output_bytes: int = 256 * 1024
    """All that it puts out, and as much again for the console. More is cut off."""
    calls: int = 256
    parallel: int = 16
    """Calls that are carried out at the same time."""
    arguments_bytes: int = 4 * 1024 * 1024
    """Of all its calls together."""
    answer_bytes: int = 16 * 1024 * 1024
    """Of one answer. A longer one is a failure that the program is told of."""
    timers: int = 10_000


class Finished(msgspec.Struct, frozen=True):
    """The program came to its end, and every call of it is answered."""

    result: str
    logs: str = ""
    incomplete: bool = False
    """There was more output than fits."""


class Waiting(msgspec.Struct, frozen=True):
    """It cannot go on before these calls are answered. Run it again with their answers among the others."""

    calls: tuple[ProgramCall, ...]
    logs: str = ""


Why = Literal["error", "limit", "crashed", "diverged", "engine_changed"]


class Failed(msgspec.Struct, frozen=True):
    """It did not come to its end. Calls that were made before stay made."""

    error: str
    """For the model."""
    why: Why = "error"
    result: str = ""
    """What it had put out."""
    logs: str = ""


Outcome = Finished | Waiting | Failed
