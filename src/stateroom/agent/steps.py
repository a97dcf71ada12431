"""What a run does next, decided from its folded state alone. Pure: no clock, no I/O, nothing remembered.

The worker asks `next_step`, does what it says, appends what came of it, and asks again. A run that was cut off by a
crash is asked the same question and gets its answer from the same table:

    it is to ask no model                               -> End completed
    asked to compact its context, and has not           -> Compact; has done so -> End completed
    a hosted call without intent                        -> CallTool, or SettleRefused beyond the caller's limit
    a hosted call with intent, without outcome          -> CallTool again if it may be repeated, else SettleUnknown
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

from typing import Final, TypeAlias

import msgspec

from stateroom.agent.compaction import COMPACTION
from stateroom.agent.state import RunState
from stateroom.journal.entries import Effect

HOSTED_CALL: Final = "stateroom:tool_call"
"""Item type of a call that the runtime itself carries out."""

CLIENT_CALLS: Final = frozenset({"function_call", "custom_tool_call"})


class Generate(msgspec.Struct, frozen=True):
    """Ask the model for an answer (or for the rest of one)."""


class Compact(msgspec.Struct, frozen=True):
    """Begin the model's context anew with a compaction item."""


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


class End(msgspec.Struct, frozen=True):
    status: str
    reason: str = ""


Step: TypeAlias = Generate | Compact | CallTool | SettleUnknown | SettleRefused | End


def next_step(run: RunState, *, steps_max: int) -> Step:
    """The next step of a run that has not ended."""
    assert run.ended is None, "a run that has ended has no next step"
    if not run.started.generate:
        return End("completed")
    if run.started.settings.compact_now:
        done = any(output.item.get("type") == COMPACTION for output in run.output)
        return End("completed") if done else Compact()
    hosted = [output for output in run.output if output.item.get("type") == HOSTED_CALL]
    calls_max = run.started.settings.max_tool_calls
    for output in hosted:
        if output.index in run.outcomes:
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
    if run.finish == "steered" or (run.steers and not run.finish):
        return End("incomplete", "steered")
    if not run.finish:
        return Generate()
    if run.finish == "length":
        return End("incomplete", "max_output_tokens")
    if run.finish == "content_filter":
        return End("incomplete", "content_filter")
    answer = run.output[run.answer_start :]
    if any(output.item.get("type") in CLIENT_CALLS for output in answer):
        return End("completed")
    if any(output.item.get("type") == HOSTED_CALL for output in answer):
        if run.steers:
            return End("incomplete", "steered")
        return Generate() if run.answers < steps_max else End("incomplete", "max_output_tokens")
    return End("completed")
