"""Carrying out a run: ask `agent.steps` what comes next, do it, append what came of it, ask again.

A run that was cut off by a crash enters here like any other. The one rule that everything else rests on: an intent is
durable before its tool starts, and nothing is shown before it is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

from stateroom.agent.state import add_usage
from stateroom.agent.steps import (
    HOSTED_CALL,
    CallTool,
    Compact,
    End,
    Generate,
    SettleRefused,
    SettleUnknown,
    next_step,
)
from stateroom.errors import StateroomError, StorageError
from stateroom.journal.entries import Fact, RunEnded, ToolIntent, ToolOutcome
from stateroom.runtime.checks import check_output
from stateroom.runtime.compaction import Compactor
from stateroom.runtime.generate import Generator
from stateroom.runtime.live import LiveRun
from stateroom.runtime.steering import Steering
from stateroom.runtime.tool_watch import watched
from stateroom.runtime.webhooks import Webhooks
from stateroom.settings import Limits
from stateroom.telemetry.instruments import Instruments
from stateroom.tools.tool import Tool, ToolCall, ToolResult

log = logging.getLogger("stateroom.runtime")

UNKNOWN_OUTCOME = (
    "The outcome of this call is unknown: the server stopped while it was being carried out, and it may or may not "
    "have taken effect. It was not repeated. Check before calling it again."
)


CHECKS_MAX = 4
"""Processes at a time that hold answers against schemas which could take for ever."""

REFUSED_CALL = "This call was not made: the request allows no more tool calls (`max_tool_calls`)."


class Worker:
    """Carries out runs, one `drive` each."""

    def __init__(
        self,
        generator: Generator,
        compactor: Compactor,
        tools: Mapping[str, Tool],
        limits: Limits,
        steering: Steering | None = None,
        webhooks: Webhooks | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        self._instruments = instruments or Instruments()
        self._steering = steering
        self._webhooks = webhooks
        self._generator = generator
        self._compactor = compactor
        self._tools = tools
        self._limits = limits
        self._checks = asyncio.Semaphore(CHECKS_MAX)

    async def drive(self, run: LiveRun) -> None:
        """Take the run to its end. Returns without an end only when this process must give it up.

        A cancelled task ends the run as cancelled if that was asked for; otherwise the run stays open in the journal,
        to be taken up by the next process.
        """
        try:
            if run.failure is not None:
                raise run.failure
            await self._steps(run)
        except asyncio.CancelledError:
            if not run.cancelling or run.state.ended is not None:
                raise
            await self._finish(run, RunEnded("cancelled"))
        except StateroomError as error:
            if run.writer.failure is None and run.state.ended is None:
                await self._fail(run, error)
            else:
                run.failure = error
                log.error("run.given_up run_id=%s code=%s", run.id, error.code)
        except Exception:  # the loop of runs must survive whatever one of them meets; it is logged with its trace
            if run.state.ended is not None:
                raise
            log.exception("run.broke run_id=%s", run.id)
            await self._fail(run, StateroomError("The server met an unexpected condition in this run; see its log."))

    async def drive_cancelled(self, run: LiveRun) -> None:
        """End a run that was cancelled before it got a place."""
        await self._finish(run, RunEnded("cancelled"))

    async def _steps(self, run: LiveRun) -> None:
        if run.status == "queued":
            run.status = "in_progress"
            if run.renderer is not None:
                run.renderer.proceed(run.view())
                run.writer.touch()
        await self._generator.prepare(run)
        while True:
            step = next_step(run.state, steps_max=self._limits.steps)
            match step:
                case Generate():
                    if await self._compactor.is_due(run):
                        await self._compactor.compact(run)
                    else:
                        await self._generator.answer(run)
                case Compact():
                    await self._compactor.compact(run)
                case CallTool():
                    await self._call_tool(run, step)
                case SettleUnknown():
                    await self._settle(run, ToolOutcome(step.index, UNKNOWN_OUTCOME, unknown=True))
                case SettleRefused():
                    await self._settle(run, ToolOutcome(step.index, REFUSED_CALL, failed=True))
                case End():
                    if step.status == "completed":
                        await check_output(run.settings, run.state, self._checks)
                    spent, run.spent = add_usage(run.state.usage, run.spent) if run.spent else None, None
                    await self._finish(run, RunEnded(step.status, usage=spent, reason=step.reason))
                    return

    async def _call_tool(self, run: LiveRun, step: CallTool) -> None:
        output = next(held for held in run.state.output if held.index == step.index)
        tool = self._tools.get(output.item["tool"])
        if tool is None:
            await self._settle(run, ToolOutcome(step.index, "This tool is no longer available.", failed=True))
            return
        call = ToolCall(
            id=output.id,
            project=run.project,
            run_id=run.id,
            call_id=output.item["call_id"],
            name=output.item["name"],
            arguments=output.item.get("arguments", ""),
            attempt=step.attempt,
        )
        run.writer.add(ToolIntent(step.index, tool.type, tool.effect(call), step.attempt))
        await run.writer.commit()
        try:
            with watched(self._instruments, tool.type, call) as watch:
                result = await tool.run(call)
                watch.failed = result.failed
        except Exception:  # a hosted tool that breaks must not break the run: the model is told, the log has the trace
            log.exception("tool.broke run_id=%s tool=%s", run.id, tool.type)
            result = ToolResult("The tool broke off with an internal error.", failed=True)
        await self._settle(run, ToolOutcome(step.index, result.output, failed=result.failed))

    async def _settle(self, run: LiveRun, outcome: ToolOutcome) -> None:
        _note(run, outcome)
        await run.writer.commit()

    async def _fail(self, run: LiveRun, error: StateroomError) -> None:
        run.failure = error
        spent, run.spent = add_usage(run.state.usage, run.spent) if run.spent else None, None
        record = {"code": error.code, "message": error.message, "type": error.type, "status": error.status}
        if error.param is not None:
            record["param"] = error.param
        await self._finish(run, RunEnded("failed", usage=spent, error=record))

    async def _finish(self, run: LiveRun, ended: RunEnded) -> None:
        """Close what is open, append the end, and show it once it is durable."""
        try:
            if run.assembler is not None:
                run.assembler.cut_off()
                for record in run.assembler.take():
                    run.writer.add(record)
            for outcome in _unsettled(run):
                _note(run, outcome)
            if ended.status in ("failed", "cancelled"):
                run.branch.context.rewind()
            told = self._told(run, ended)
            for message in told:
                run.writer.add(message)
            run.writer.add(ended)
            if run.renderer is not None:
                run.renderer.end(run.view())
            successor = self._steering.successor(run) if self._steering is not None else None
            if successor is not None:
                run.writer.hand_over(successor)
            await asyncio.shield(run.writer.commit(release=True))
            if self._webhooks is not None:
                self._webhooks.sent(run.project, told)
            if successor is not None and self._steering is not None:
                self._steering.begin(run)
        except StorageError as error:
            run.failure = error
            log.error("run.given_up run_id=%s code=%s", run.id, error.code)

    def _told(self, run: LiveRun, ended: RunEnded) -> Sequence[Fact]:
        """What has to be committed with the end, for those who asked to be told of it."""
        if self._webhooks is None or not run.stored or not run.state.started.background:
            return ()
        return self._webhooks.outgoing(run.project, f"response.{ended.status}", run.id)


def _note(run: LiveRun, outcome: ToolOutcome) -> None:
    """Add an outcome and the event that shows it; both go into the next commit."""
    run.writer.add(outcome)
    if run.renderer is not None:
        output = next(held for held in run.state.output if held.index == outcome.index)
        run.renderer.item_closed(output.index, output.id, output.item)


def _unsettled(run: LiveRun) -> list[ToolOutcome]:
    """Outcomes for hosted calls that a run leaves behind when it is cut short, cancelled or fails."""
    outcomes = []
    for output in run.state.output:
        if output.item.get("type") == HOSTED_CALL and output.index not in run.state.outcomes:
            if output.index in run.state.intents:
                outcomes.append(ToolOutcome(output.index, UNKNOWN_OUTCOME, unknown=True))
            else:
                outcomes.append(ToolOutcome(output.index, "The run ended before this call began.", failed=True))
    return outcomes
