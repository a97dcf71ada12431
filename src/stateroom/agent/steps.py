"""What a run does next, decided from its folded state alone. Pure: no clock, no I/O, nothing remembered.

The worker asks `next_step`, does what it says, appends what came of it, and asks again. A run that was cut off by a
crash is asked the same question and gets its answer from the same table:

    it is to ask no model                               -> End completed
    the tools of an MCP server are not known yet        -> ListTools
    a person has answered a request for an approval     -> TakeUpApproval
    asked to compact its context, and has not           -> Compact; has done so -> End completed
    a hosted call without intent                        -> CallTool, or SettleRefused beyond the caller's limit
    a hosted call with intent, without outcome          -> CallTool again if it may be repeated, else SettleUnknown
    a program without an output, nothing to wait for    -> RunProgram (from its start, with the answers there are)
    a program whose calls nobody answered, and its
    user went on to something else                      -> GiveUpProgram
    a program waits for its client                      -> End completed (the client answers in a new run)
    its user said something meanwhile, and the answer
    is not complete or has only hosted calls            -> End incomplete (a new run takes it in)
    the model's answer is not complete                  -> Generate
    the answer was cut short (length, content filter)   -> End incomplete; none of its hosted calls is carried out
    the answer has client calls                         -> End completed (the client answers in a new run)
    the answer has hosted calls, all settled            -> Generate, up to the limit of steps
    otherwise                                           -> End completed

Whether to compact before an answer depends on token counts that the journal does not hold: the worker looks at them
when it is told to generate.

An intent without an outcome can only be met after a crash: the worker that wrote it writes the outcome before it asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from stateroom.agent.compaction import COMPACTION
from stateroom.agent.hosted import tool_of
from stateroom.agent.state import RunState
from stateroom.journal.entries import Effect, OutputItem
from stateroom.journal.hosted_items import PROGRAM, caller_of


class Generate(msgspec.Struct, frozen=True):
    """Ask the model for an answer (or for the rest of one)."""


class Compact(msgspec.Struct, frozen=True):
    """Begin the model's context anew with a compaction item."""


class ListTools(msgspec.Struct, frozen=True):
    """Ask the MCP server of this label which tools it has."""

    label: str


class TakeUpApproval(msgspec.Struct, frozen=True):
    """Make the call that was asked for by a request, or say that it was refused."""

    request_id: str
    approve: bool
    reason: str = ""


class CallTool(msgspec.Struct, frozen=True):
    """Carry out the hosted call at this output index: intent, execution, outcome."""

    index: int
    attempt: int


class SettleUnknown(msgspec.Struct, frozen=True):
    """Record that nobody knows whether the hosted call at this index took effect; never repeat it."""

    index: int


class SettleRefused(msgspec.Struct, frozen=True):
    """Record that the hosted call at this index was not made: the caller allows no more of them."""

    index: int


class RunProgram(msgspec.Struct, frozen=True):
    """Run the program of this call id from its start, with the answers that its calls have had."""

    call_id: str


class GiveUpProgram(msgspec.Struct, frozen=True):
    """End a program whose calls were not answered."""

    call_id: str


class End(msgspec.Struct, frozen=True):
    status: str
    reason: str = ""


Step: TypeAlias = (
    Generate
    | Compact
    | ListTools
    | TakeUpApproval
    | CallTool
    | SettleUnknown
    | SettleRefused
    | RunProgram
    | GiveUpProgram
    | End
)


def next_step(run: RunState, *, steps_max: int, unlisted: Sequence[str] = ()) -> Step:
    """The next step of a run that has not ended. `unlisted` are MCP servers whose tools are needed and not known."""
    assert run.ended is None, "a run that has ended has no next step"
    if not run.started.generate:
        return End("completed")
    if run.started.settings.compact_now:
        done = any(output.item.get("type") == COMPACTION for output in run.output)
        return End("completed") if done else Compact()
    if unlisted and not run.finish:
        return ListTools(unlisted[0])
    # What a program had begun is settled before the program is run again, which is before what comes after it.
    nested = [output for output in run.output if caller_of(output.item)]
    due = _due(run, nested) or _due(run, run.output)
    if due is not None:
        return due
    for given in run.approvals:
        if given["approval_request_id"] not in run.taken_up:
            return TakeUpApproval(given["approval_request_id"], given["approve"], given.get("reason") or "")
    for program in run.programs.values():
        if not program.waits:
            return RunProgram(program.call_id)
        if program.overtaken:
            return GiveUpProgram(program.call_id)
    if run.programs:
        return End("completed")
    if run.finish == "steered" or (run.steers and not run.finish):
        return End("incomplete", "steered")
    if not run.finish:
        return Generate() if run.answers < steps_max else End("incomplete", "max_output_tokens")
    if run.finish == "length":
        return End("incomplete", "max_output_tokens")
    if run.finish == "content_filter":
        return End("incomplete", "content_filter")
    if run.awaits_client:
        return End("completed")
    answer = [output.item for output in run.output[run.answer_start :] if output.index not in run.own]
    if any(tool_of(item) or item.get("type") == PROGRAM for item in answer):
        if run.steers:
            return End("incomplete", "steered")
        return Generate() if run.answers < steps_max else End("incomplete", "max_output_tokens")
    return End("completed")


def _due(run: RunState, outputs: Sequence[OutputItem]) -> Step | None:
    """What is to be done next for the first of these calls that has no outcome."""
    calls_max = run.started.settings.max_tool_calls
    for output in outputs:
        if output.item.get("type") == PROGRAM:
            program = run.programs.get(output.item["call_id"])
            if program is not None and program.held.id == output.id and not program.waits:
                return RunProgram(program.call_id)
        if not tool_of(output.item) or output.index in run.outcomes:
            continue
        intent = run.intents.get(output.index)
        if intent is None:
            if run.finish in ("length", "content_filter"):
                continue
            if calls_max is not None and len(run.intents) >= calls_max:
                return SettleRefused(output.index)
            return CallTool(output.index, 1)
        if intent.effect is Effect.EFFECT:
            return SettleUnknown(output.index)
        return CallTool(output.index, intent.attempt + 1)
    return None
