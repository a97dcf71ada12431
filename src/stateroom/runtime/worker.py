"""Carrying out a run: ask `agent.steps` what comes next, do it, append what came of it, ask again.

A run that was cut off by a crash enters here like any other. The one rule that everything else rests on: an intent is
durable before its tool starts, and nothing is shown before it is durable.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from stateroom.agent.state import add_usage
from stateroom.agent.steps import (
    CallTool,
    Compact,
    End,
    Generate,
    GiveUpProgram,
    ListTools,
    RunProgram,
    SettleRefused,
    SettleUnknown,
    TakeUpApproval,
    next_step,
)
from stateroom.errors import StateroomError, StorageError
from stateroom.journal.entries import Fact, RunEnded
from stateroom.runtime.checks import check_output
from stateroom.runtime.compaction import Compactor
from stateroom.runtime.generate import Generator
from stateroom.runtime.hosted_calls import UNKNOWN_OUTCOME, HostedCalls
from stateroom.runtime.live import LiveRun
from stateroom.runtime.programs import REFUSED_CALL
from stateroom.runtime.steering import Steering
from stateroom.runtime.webhooks import Webhooks
from stateroom.settings import Limits

log = logging.getLogger("stateroom.runtime")

CHECKS_MAX = 4
"""Processes at a time that hold answers against schemas which could take for ever."""


class Worker:
    """Carries out runs, one `drive` each."""

    def __init__(
        self,
        generator: Generator,
        compactor: Compactor,
        hosted: HostedCalls,
        limits: Limits,
        steering: Steering | None = None,
        webhooks: Webhooks | None = None,
    ) -> None:
        self._steering = steering
        self._webhooks = webhooks
        self._generator = generator
        self._compactor = compactor
        self._hosted = hosted
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
        await self._hosted.place(run)
        await self._generator.prepare(run)
        while True:
            step = next_step(run.state, steps_max=self._limits.steps, unlisted=run.plan.unlisted)
            match step:
                case Generate():
                    if await self._compactor.is_due(run):
                        await self._compactor.compact(run)
                    else:
                        await self._generator.answer(run)
                case Compact():
                    await self._compactor.compact(run)
                case ListTools():
                    await self._hosted.list_tools(run, step.label)
                case TakeUpApproval():
                    await self._hosted.take_up_approval(run, step)
                case CallTool():
                    await self._hosted.call(run, step)
                case SettleUnknown():
                    await self._hosted.settle(run, step.index, UNKNOWN_OUTCOME, unknown=True)
                case SettleRefused():
                    await self._hosted.settle(run, step.index, REFUSED_CALL, failed=True)
                case RunProgram():
                    await self._hosted.programs.run(run, step.call_id)
                case GiveUpProgram():
                    await self._hosted.programs.give_up(run, step.call_id)
                case End():
                    if step.status == "completed":
                        await check_output(run.settings, run.state, self._checks)
                    spent, run.spent = add_usage(run.state.usage, run.spent) if run.spent else None, None
                    await self._finish(run, RunEnded(step.status, usage=spent, reason=step.reason))
                    return

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
            self._hosted.leave(run, ended.status)
            if ended.status in ("failed", "cancelled"):
                run.branch.context.rewind()
            workspaces = await self._hosted.places.keep_files(run)
            await self._end(run, msgspec.structs.replace(ended, workspaces=workspaces))
        except StorageError as error:
            run.failure = error
            log.error("run.given_up run_id=%s code=%s", run.id, error.code)

    async def _end(self, run: LiveRun, ended: RunEnded) -> None:
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

    def _told(self, run: LiveRun, ended: RunEnded) -> Sequence[Fact]:
        """What has to be committed with the end, for those who asked to be told of it."""
        if self._webhooks is None or not run.stored or not run.state.started.background:
            return ()
        return self._webhooks.outgoing(run.project, f"response.{ended.status}", run.id)
