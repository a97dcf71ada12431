"""Hosted tool calls of a run: the policy's word, the intent, the call itself, its outcome, and the items of all that.

Every call passes the same gate. An intent is durable before its tool starts; the outcome, and the item that shows it,
are one commit.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final, Protocol

import msgspec

from stateroom import ids
from stateroom.access.policy import Policy, named, parts_of
from stateroom.agent.hosted import tool_of
from stateroom.agent.steps import CallTool, TakeUpApproval
from stateroom.agent.tool_search import found_tools
from stateroom.blobs.hold import BlobHold, HeldBlobs
from stateroom.clock import Clock, SystemClock
from stateroom.errors import NoSandbox, RequestError, SandboxDied, StateroomError, StorageError, WorkspaceError
from stateroom.journal.entries import (
    Effect,
    Item,
    ItemFinished,
    OutputItem,
    RunSettings,
    ToolDecided,
    ToolIntent,
    ToolOutcome,
    WorkspaceAt,
    item_prefix,
)
from stateroom.journal.hosted_items import LISTING, SEARCH, caller_of
from stateroom.runtime.approvals import asked_for, asking, request_of
from stateroom.runtime.live import LiveRun
from stateroom.runtime.outcomes import called_by, settled, with_images
from stateroom.runtime.places import Containers, Places, container_of
from stateroom.runtime.programs import ProgramCalls
from stateroom.runtime.skills.mounting import local_instructions
from stateroom.runtime.surface import ToolPlan
from stateroom.runtime.tool_watch import watched
from stateroom.telemetry.instruments import Instruments
from stateroom.tools.program.engine import Programs
from stateroom.tools.tool import Tool, ToolCall, ToolResult
from stateroom.wire.skills import local_skills

log = logging.getLogger("stateroom.runtime")

UNKNOWN_OUTCOME: Final = (
    "The outcome of this call is unknown: the server stopped while it was being carried out, and it may or may not "
    "have taken effect. It was not repeated. Check before calling it again."
)
CUT_OFF: Final = (
    "The outcome of this call is unknown: the response {} while it was being carried out, and it may or may not have "
    "taken effect. Check before calling it again."
)
WAITING_CALL: Final = "This call was not made yet: the user is asked first."
_CLOSED_BY_OUTCOME: Final = frozenset({"stateroom:tool_call", "code_interpreter_call", "mcp_call"})
"""Types of calls whose item holds the outcome as well."""


class Lister(Protocol):
    """What is needed of the client of MCP servers."""

    def check(self, declaration: Mapping[str, Any], path: str) -> None: ...

    async def listing(self, declaration: Mapping[str, Any], project: str, workspace: Any) -> Item:
        """The item `mcp_list_tools` of a server; with `error` when it could not be asked."""
        ...


class ListingFailed(StateroomError):
    """An MCP server did not say which tools it has."""

    status = 424
    type = "external_connector_error"
    code = "mcp_list_tools_failed"


class HostedCalls:
    """Carries out the hosted calls of all runs."""

    def __init__(
        self,
        tools: Mapping[str, Tool],
        *,
        policy: Policy | None = None,
        containers: Containers | None = None,
        lister: Lister | None = None,
        open_tools: Callable[[str, RunSettings], RunSettings] = lambda project, settings: settings,
        held: HeldBlobs | None = None,
        instruments: Instruments | None = None,
        programs: Programs | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._tools = tools
        self._policy = policy or Policy(())
        self.programs = ProgramCalls(self, programs, self._policy, clock or SystemClock())
        self.places = Places(containers)
        self._hold: Callable[[], AbstractContextManager[BlobHold | None]] = held.hold if held else nullcontext
        self._lister = lister
        self._open_tools = open_tools
        self._instruments = instruments or Instruments()

    async def check(
        self, project: str, key: str, plan: ToolPlan, base: WorkspaceAt | None, *, branch: str = ""
    ) -> None:
        """Settle which containers a run's tools are to work in, and whether its MCP servers may be reached.

        Nothing is begun. Raises RequestError, NoSandbox.
        """
        if self._lister is not None:
            for label, declaration in plan.servers.items():
                self._lister.check(declaration, f"tools[{label}]")
        await self.places.settle(project, key, plan, base, branch=branch)

    async def place(self, run: LiveRun) -> None:
        """The same for a run that was not checked; and find out what its model is told of the places."""
        self.programs.sign(run)
        if not run.settings.tools and not run.plan.environments:
            return
        if not await self.places.find(run):
            await self.check(run.project, run.state.key, run.plan, run.plan.base, branch=run.branch.branch)
        await self.places.reopen(run)
        told = (local_instructions(local_skills(run.settings.tools)), await self.places.told(run))
        run.plan.told = "\n\n".join([text for text in told if text])

    async def list_tools(self, run: LiveRun, label: str) -> None:
        """Ask a server for its tools and write down what it says. Raises ListingFailed."""
        assert self._lister is not None, "servers are only taken where there is a client for them"
        declaration = run.plan.servers[label]
        index = run.state.next_index
        if run.renderer is not None:
            opened = {"type": LISTING, "server_label": label, "tools": []}
            run.renderer.item_opened(index, _id_of(run, index, opened), opened)
            run.writer.touch()
        item = await self._lister.listing(declaration, run.project, self.places.opener(run, "mcp"))
        self.add_own(run, item)
        await run.writer.commit()
        if item.get("error"):
            raise ListingFailed(
                f"The tools of the MCP server '{label}' could not be listed: {item['error']} Check 'server_url' and "
                "'authorization'.",
                param="tools",
            )
        self._replan(run)

    async def take_up_approval(self, run: LiveRun, step: TakeUpApproval) -> None:
        """Make the item of the call that was asked for; when it was refused, with that as its outcome."""
        request = request_of(run, step.request_id)
        item = asked_for(run, step.request_id, request)
        missing = not tool_of(item)
        index = self.begin_own(run, item)
        if step.approve and not missing:
            run.writer.add(ToolDecided(index, "allow", step.request_id))
            await run.writer.commit()
            return
        why = "This tool is no longer available." if step.approve else "The user refused this call."
        if not step.approve:
            run.writer.add(ToolDecided(index, "deny", step.request_id))
            why += f" Reason: {step.reason}" if step.reason else ""
        await self.settle(run, index, why, failed=True)

    async def call(self, run: LiveRun, step: CallTool) -> None:
        """Carry out the call at this output index, or say why it is not."""
        output = _output(run, step.index)
        item, kind = output.item, tool_of(output.item)
        tool = self._tools.get(kind)
        if tool is None and kind != SEARCH:
            await self.settle(run, step.index, "This tool is no longer available.", failed=True)
            return
        if "malformed" in item:
            await self.settle(run, step.index, "The arguments are not as the tool's parameters demand.", failed=True)
            return
        if tool is None:
            await self._search(run, output)
            return
        call = ToolCall(
            id=output.id,
            project=run.project,
            run_id=run.id,
            call_id=item.get("call_id") or output.id,
            name=item.get("called") or item.get("name") or kind,
            arguments=item.get("arguments") or "",
            attempt=step.attempt,
            item=item,
            declaration=run.plan.servers.get(item.get("server_label", ""), {}),
            workspace=self.places.opener(run, kind, container_of(item)),
        )
        if step.attempt == 1 and not await self._passes(run, output, kind):
            return
        run.writer.add(ToolIntent(step.index, tool.type, tool.effect(call), step.attempt))
        await run.writer.commit()
        try:
            result = await self._carry_out(run, tool, call)
        except NoSandbox as error:  # nothing was begun, and no model can help it
            await self.settle(run, step.index, error.message, failed=True)
            raise
        await self._settle(run, output, result)

    async def _passes(self, run: LiveRun, output: OutputItem, kind: str) -> bool:
        """Ask the policy; when it does not allow the call, its outcome says so."""
        item = output.item
        said = self._policy.decide(run.project, named(item, kind), parts_of(item))
        reason = f" Reason: {said.reason}" if said.reason else ""
        asks = said.decision == "ask" and "approval_request_id" not in item
        # A program's call is asked for before there is an item of it: here the rule is newer than the call.
        if asks and caller_of(item):
            said = msgspec.structs.replace(said, decision="deny")
        if said.decision == "deny":
            run.writer.add(ToolDecided(output.index, "deny", said.by))
            await self.settle(run, output.index, f"This call is not allowed here.{reason}", failed=True)
            return False
        if asks:
            run.writer.add(ToolDecided(output.index, "ask", said.by))
            self._note(run, output, *settled(item, ToolResult(WAITING_CALL + reason, failed=True)))
            self.add_own(run, asking(item, kind))
            await run.writer.commit()
            return False
        if "approval_request_id" not in item:
            run.writer.add(ToolDecided(output.index, "allow", said.by))
        return True

    async def _carry_out(self, run: LiveRun, tool: Tool, call: ToolCall) -> ToolResult:
        printed = None
        renderer = run.renderer
        if renderer is not None and call.item.get("type") == "shell_call":
            index = run.state.next_index
            opened = called_by(call.item, {"type": "shell_call_output", "call_id": call.call_id, "output": []})
            renderer.item_opened(index, _id_of(run, index, opened), opened)
            run.writer.touch()

            def printed(command: int, stdout: str, stderr: str) -> None:
                if run.state.ended is None and run.writer.failure is None:
                    renderer.printed(index, command, stdout, stderr)
                    run.writer.touch()

        try:
            with watched(self._instruments, tool.type, call) as watch:
                result = await tool.run(call, printed)
                watch.failed = result.failed
        except NoSandbox:
            raise
        except (WorkspaceError, RequestError, StorageError) as error:
            log.warning("tool.no_workspace run_id=%s tool=%s code=%s", run.id, tool.type, error.code)
            return ToolResult(error.message, failed=True, unknown=isinstance(error, SandboxDied))
        except Exception:  # a hosted tool that breaks must not break the run: the model is told, the log has the trace
            log.exception("tool.broke run_id=%s tool=%s", run.id, tool.type)
            return ToolResult("The tool broke off with an internal error.", failed=True)
        return result

    async def _search(self, run: LiveRun, output: OutputItem) -> None:
        """Find deferred tools; they can be called from then on."""
        run.writer.add(ToolIntent(output.index, SEARCH, Effect.READ))
        arguments = output.item["arguments"]
        found = found_tools(run.plan.deferred, arguments.get("query", ""), arguments.get("limit"))
        item = {"type": "tool_search_output", "call_id": output.item["call_id"], "tools": found}
        await self._settle(run, output, ToolResult(item=item))
        if found:
            self._replan(run)

    async def settle(self, run: LiveRun, index: int, text: str, *, failed: bool = False, unknown: bool = False) -> None:
        """Write down an outcome that is a text and no more."""
        output = _output(run, index)
        self._note(run, output, *settled(output.item, ToolResult(text, failed), unknown=unknown))
        await run.writer.commit()

    async def _settle(self, run: LiveRun, output: OutputItem, result: ToolResult) -> None:
        """Write down what a tool gave. Its images are blobs, but for a run that is not stored."""
        outcome_of = partial(settled, output.item, unknown=result.unknown)
        if not result.images:
            self._note(run, output, *outcome_of(result))
            await run.writer.commit()
            return
        urls = [f"data:image/png;base64,{base64.b64encode(image).decode()}" for image in result.images]
        shown: list[dict[str, Any]] = [{"type": "image", "url": url} for url in urls]
        with self._hold() as hold:
            kept = shown
            if run.stored and hold is not None:
                kept = [
                    {"type": "image", "blob": await hold.put(image), "media_type": "image/png"}
                    for image in result.images
                ]
            self._note(run, output, *outcome_of(with_images(result, kept)), shown=with_images(result, shown).fields)
            await run.writer.commit()

    def leave(self, run: LiveRun, status: str) -> None:
        """Outcomes for calls that a run leaves behind when it is cut short, cancelled or fails; not committed yet."""
        for output in list(run.state.output):
            if not tool_of(output.item) or output.index in run.state.outcomes:
                continue
            if output.index in run.state.intents:
                why = "was cancelled" if status == "cancelled" else "ended"
                ended = settled(output.item, ToolResult(CUT_OFF.format(why)), unknown=True)
            else:
                ended = settled(output.item, ToolResult("The run ended before this call began.", failed=True))
            self._note(run, output, *ended)
        self.programs.leave(run, status)

    def _note(
        self,
        run: LiveRun,
        output: OutputItem,
        outcome: ToolOutcome,
        result: Item | None,
        *,
        shown: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an outcome, its item, and the events that show them; all of it goes into the next commit."""
        run.writer.add(msgspec.structs.replace(outcome, index=output.index))
        if run.renderer is not None and output.item.get("type") in _CLOSED_BY_OUTCOME:
            now = _output(run, output.index)
            run.renderer.item_closed(now.index, now.id, {**now.item, **(shown or {})})
        if result is not None:
            self.add_own(run, called_by(output.item, result))

    def begin_own(self, run: LiveRun, item: Item) -> int:
        """Add a hosted call that the model did not make itself; its output index."""
        index = run.state.next_index
        if run.renderer is not None:
            identifier = _id_of(run, index, item)
            run.renderer.item_opened(index, identifier, item)
            if item["type"] in _CLOSED_BY_OUTCOME:
                run.renderer.called(index, item)
            else:
                run.renderer.item_closed(index, identifier, item)
        run.writer.add(ItemFinished(index, item, own=True))
        return index

    def add_own(self, run: LiveRun, item: Item) -> None:
        """Add an item that the runtime itself writes."""
        index = run.state.next_index
        run.writer.add(ItemFinished(index, item, own=True))
        if run.renderer is not None:
            run.renderer.item_closed(index, _id_of(run, index, item), item)

    def _replan(self, run: LiveRun) -> None:
        """Offer what the run's own items have brought along."""
        if run.surface is None:
            return
        settings = self._open_tools(run.project, run.settings)
        before = run.plan
        run.plan = run.surface.plan(settings, run.branch.state.steering_of(run.state))
        run.plan.containers.update(before.containers)
        run.plan.told, run.plan.base = before.told, before.base
        self.programs.sign(run)


def _output(run: LiveRun, index: int) -> OutputItem:
    return next(held for held in run.state.output if held.index == index)


def _id_of(run: LiveRun, index: int, item: Item) -> str:
    return ids.item_id(item_prefix(item), run.state.key, ids.OUTPUT_BASE + index)
