"""Programs of a run: each is run as far as its answers reach, and its calls become items of the run.

A program does nothing to the world by itself, so there is no intent for it: it is run again from its start whenever
something is to become of it, after a crash as well as when its client has answered. What its calls did is in the
journal by then, each with an intent and an outcome of its own, and is told to it again instead of being done again.

The calls of one program come to this run's stream one after the other, also where it made them at the same time; those
of clients wait side by side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Protocol

from stateroom.access.policy import Policy, named, parts_of
from stateroom.agent.hosted import is_client_call, tool_of
from stateroom.agent.programs import BEGINNING, PROGRAM_OUTPUT, OpenProgram, OpenPrograms, answer_of, same_call, take
from stateroom.agent.state import BranchState, identified
from stateroom.agent.steps import CallTool
from stateroom.clock import Clock
from stateroom.errors import InvalidRequest
from stateroom.journal.entries import ContextItem, Item, ToolDecided
from stateroom.journal.hosted_items import APPROVAL_RESPONSE, PROGRAM, caller_of
from stateroom.runtime.approvals import asking
from stateroom.runtime.live import LiveRun
from stateroom.runtime.surface import ToolPlan
from stateroom.tools.program.contract import (
    Answered,
    Failed,
    Finished,
    Outcome,
    Pending,
    ProgramAnswer,
    ProgramCall,
    Waiting,
)
from stateroom.tools.program.engine import Programs

REFUSED_CALL: Final = "This call was not made: the request allows no more tool calls (`max_tool_calls`)."
_STAYS: Final = "What it had called before was carried out."
_MALFORMED: Final = "The arguments are not as the tool's parameters demand."
_ENDED: Final = f"The run ended before this program did. {_STAYS}"
_NAMED_MAX: Final = 8
_CONCERN: Final = BEGINNING | {APPROVAL_RESPONSE}
"""Types of input items that may concern a program."""
_NAME: Final = "programmatic_tool_calling"
"""By which rules of the policy know programs."""


class Carrier(Protocol):
    """What carries out hosted calls: `runtime.hosted_calls`."""

    def begin_own(self, run: LiveRun, item: Item) -> int: ...

    def add_own(self, run: LiveRun, item: Item) -> None: ...

    async def call(self, run: LiveRun, step: CallTool) -> None: ...

    async def settle(
        self, run: LiveRun, index: int, text: str, *, failed: bool = False, unknown: bool = False
    ) -> None: ...


class ProgramCalls:
    """Runs the programs of all runs."""

    def __init__(self, carrier: Carrier, engine: Programs | None, policy: Policy, clock: Clock) -> None:
        self._carrier = carrier
        self._engine = engine
        self._policy = policy
        self._clock = clock

    def sign(self, run: LiveRun) -> None:
        """Have the programs that its model will write bound to the project."""
        engine, project = self._engine, run.project
        if engine is not None:
            run.plan.fingerprint = lambda code: engine.fingerprint(code, project=project, time=self._clock.now())

    def check(
        self, project: str, branch: BranchState, key: str, items: Sequence[Item], plan: ToolPlan, *, goes_on: bool
    ) -> None:
        """Whether programs that wait can go on with a run's input, if that `goes_on`. Raises InvalidRequest."""
        if not branch.programs and not any(item.get("type") in _CONCERN or caller_of(item) for item in items):
            return
        given = identified(key, list(items), branch.head + 1)
        programs = dict(branch.programs)
        for held in given:
            take(programs, held)
        _check_owners(branch, items, programs)
        _check_decisions([*branch.items, *given], items, programs)
        for call_id, program in programs.items():
            item = program.held.item
            if self._engine is not None and call_id not in branch.programs:
                self._engine.fingerprints.read(item["fingerprint"], item["code"], project=project)
            if goes_on and not program.overtaken:
                _check_answered(program)
            if goes_on and not program.waits and program.calls and not plan.programmatic:
                raise InvalidRequest(
                    "A program is to go on, and no tool that programs may call is declared. Send the same `tools` as "
                    "with the request that it comes from.",
                    code="program_tools_missing",
                    param="tools",
                )

    async def run(self, run: LiveRun, call_id: str) -> None:
        """Run a program as far as its answers reach, and write down how it ended, if it did."""
        program = run.state.programs[call_id]
        item = program.held.item
        refusal = self._refusal(run, program) or self._impossible(run, item)
        if refusal or self._engine is None:
            await self._end(run, program, refusal, complete=False)
            return
        segment = _Segment(run, program, self._carrier, self._policy)
        outcome = await self._engine.run(
            item["code"],
            fingerprint=item["fingerprint"],
            project=run.project,
            tools=run.plan.programmatic,
            answers=segment.answers(),
            call=segment.call,
            same=segment.same,
        )
        if isinstance(outcome, Waiting) and run.state.programs[call_id].waits:
            await run.writer.commit()
            return
        await self._end(run, program, _told(outcome), complete=isinstance(outcome, Finished) and not outcome.incomplete)

    async def give_up(self, run: LiveRun, call_id: str) -> None:
        """End a program that its client left alone."""
        program = run.state.programs[call_id]
        unanswered = ", ".join(_names(program)[:_NAMED_MAX])
        await self._end(
            run,
            program,
            f"The program was given up: nobody answered its calls of {unanswered}. {_STAYS}",
            complete=False,
        )

    def leave(self, run: LiveRun, status: str) -> None:
        """Outputs for programs that a run leaves behind, but for those that wait; not committed yet."""
        for program in list(run.state.programs.values()):
            if status != "completed" or not program.waits:
                self._carrier.add_own(run, _output(program, _ENDED, complete=False))

    async def _end(self, run: LiveRun, program: OpenProgram, result: str, *, complete: bool) -> None:
        self._carrier.add_own(run, _output(program, result, complete=complete))
        await run.writer.commit()

    def _impossible(self, run: LiveRun, item: Item) -> str:
        """Why a program cannot run here, which may have been begun in another place."""
        if self._engine is None or self._engine.unavailable:
            return f"Programs cannot run on this server. {_STAYS}"
        try:
            self._engine.fingerprints.read(item["fingerprint"], item["code"], project=run.project)
        except InvalidRequest:
            return f"The program cannot be run again here: it was begun in another place. {_STAYS}"
        return ""

    def _refusal(self, run: LiveRun, program: OpenProgram) -> str:
        """Why a program is not run at all. What a policy wants asked is asked for each of its calls."""
        item = program.held.item
        if "malformed" in item:
            return _MALFORMED
        said = self._policy.decide(run.project, _NAME, [(item["code"],)])
        if said.decision != "deny":
            return ""
        index = next((held.index for held in run.state.output if held.id == program.held.id), -1)
        if index >= 0:
            run.writer.add(ToolDecided(index, "deny", said.by))
        return (
            f"Programs are not allowed here. Reason: {said.reason}" if said.reason else "Programs are not allowed here."
        )


class _Segment:
    """One run of one program: what it calls is answered from the journal, carried out, or left to the client."""

    def __init__(self, run: LiveRun, program: OpenProgram, carrier: Carrier, policy: Policy) -> None:
        self._run = run
        self._owner = program.call_id
        self._before = program.calls
        self._carrier = carrier
        self._policy = policy
        self._turn = asyncio.Lock()

    def answers(self) -> list[Answered]:
        """What is known of its calls already."""
        known = [(call_id, nested) for call_id, nested in self._before.items() if not nested.waits]
        return [Answered(call_id, "", "", *answer_of(nested)) for call_id, nested in known]

    def same(self, call: ProgramCall, answered: Answered) -> bool:
        nested = self._before[answered.call_id]
        made = self._run.plan.nested(call.name, call.call_id, call.arguments)
        held = nested.call or nested.request
        return made is not None and held is not None and same_call(made, held.item)

    async def call(self, call: ProgramCall) -> ProgramAnswer | Pending:
        async with self._turn:
            if call.call_id in self._before:
                return Pending()  # what of these has an answer is never asked for
            return await self._new(call)

    async def _new(self, call: ProgramCall) -> ProgramAnswer | Pending:
        run, plan = self._run, self._run.plan
        made = plan.nested(call.name, call.call_id, call.arguments)
        if made is None or (plan.allowed is not None and call.name not in plan.allowed):
            return ProgramAnswer(f"{call.name} may not be called: `tool_choice` does not allow it.", failed=True)
        item = {**made, "call_id": call.call_id, "caller": {"type": PROGRAM, "caller_id": self._owner}}
        if is_client_call(item):
            self._carrier.add_own(run, item)
            run.writer.touch()
            return Pending()
        kind = tool_of(item)
        said = self._policy.decide(run.project, named(item, kind), parts_of(item))
        if said.decision == "ask":
            run.writer.add(ToolDecided(run.state.next_index, "ask", said.by))
            request = {"call_id": item["call_id"], "caller": item["caller"]}
            self._carrier.add_own(run, {**asking(item, kind), **request})
            run.writer.touch()
            return Pending()
        most, index = run.state.started.settings.max_tool_calls, self._carrier.begin_own(run, item)
        if most is not None and len(run.state.intents) >= most:
            await self._carrier.settle(run, index, REFUSED_CALL, failed=True)
        else:
            await self._carrier.call(run, CallTool(index, 1))
        return ProgramAnswer(*answer_of(run.state.programs[self._owner].calls[call.call_id]))


def _output(program: OpenProgram, result: str, *, complete: bool) -> Item:
    item: Item = {"type": PROGRAM_OUTPUT, "call_id": program.call_id, "result": result}
    return item if complete else {**item, "status": "incomplete"}


def _told(outcome: Outcome) -> str:
    """The result of a program, for its model."""
    if isinstance(outcome, Finished):
        return outcome.result
    if isinstance(outcome, Failed):
        return "\n".join([part for part in (outcome.result, f"The program failed. {outcome.error}") if part])
    return "The program failed: run again, it waits for calls that it had not made."


def _names(program: OpenProgram) -> list[str]:
    """What is called by its calls that nobody has answered."""
    held = [nested.call or nested.request for nested in program.calls.values() if nested.waits]
    items: list[dict[str, Any]] = [each.item for each in held if each is not None]
    return list(dict.fromkeys(str(item.get("name") or item.get("type")) for item in items))


def _check_owners(branch: BranchState, items: Sequence[Item], programs: OpenPrograms) -> None:
    """Whether each answer to a program's call comes with the program. Raises InvalidRequest."""
    owners = {caller_of(item) for item in items} - {""}
    known = {item["call_id"] for item in items if item.get("type") == PROGRAM} | programs.keys()
    if not owners <= known:
        known |= {held.item["call_id"] for held in branch.items if held.item.get("type") == PROGRAM}
    if missing := sorted(owners - known):
        raise InvalidRequest(
            f"The input has a call, or the result of one, of the program '{missing[0][:64]}', which is not there. "
            "Continue the response that holds it (`previous_response_id` or `conversation`), or send its `program` "
            "item and all its calls along.",
            code="program_not_found",
            param="input",
        )


def _check_decisions(present: Sequence[ContextItem], items: Sequence[Item], programs: OpenPrograms) -> None:
    """Whether what is decided of a program's request can still be of use to it. Raises InvalidRequest."""
    decided = {item["approval_request_id"] for item in items if item.get("type") == APPROVAL_RESPONSE}
    for held in present if decided else ():
        owner = caller_of(held.item)
        if held.id in decided and owner and owner not in programs:
            raise InvalidRequest(
                f"The request '{held.id[:64]}' was made by a program that has come to its end.",
                code="approval_request_not_found",
                param="input",
            )


def _check_answered(program: OpenProgram) -> None:
    """Whether a program that nobody turned away from has all it waits for. Raises InvalidRequest."""
    if waits := program.waits:
        named_ids = ", ".join(f"'{each[:64]}'" for each in waits[:_NAMED_MAX])
        raise InvalidRequest(
            f"The program '{program.call_id[:64]}' waits for answers to {named_ids}. Send them all in one request: a "
            "`function_call_output`, or the like, for each call, an `mcp_approval_response` for each request. A "
            "message of the user instead gives the program up.",
            code="program_calls_unanswered",
            param="input",
        )
