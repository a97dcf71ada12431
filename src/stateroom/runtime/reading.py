"""Looking runs up: how they stand, what they were given, what they streamed. Nothing here changes anything."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

import msgspec

from stateroom.agent.state import RunState, fold_run
from stateroom.errors import InvalidRequest, NotFound
from stateroom.journal.entries import ContextItem, Entry, RunView
from stateroom.journal.store import Index, Journal, RunRow
from stateroom.runtime.branches import Branches, items_before
from stateroom.runtime.cursors import check_cursors
from stateroom.runtime.inputs import Inputs
from stateroom.runtime.live import LiveRun
from stateroom.runtime.stream import LiveStream

RESPONSES = "responses"
"""The surface whose runs are meant where none is named. A run of another surface looks like none."""


class RunReader:
    """The runs of the journal, and those that go on in this process."""

    def __init__(self, journal: Journal, index: Index, branches: Branches, inputs: Inputs) -> None:
        self._journal = journal
        self._index = index
        self._branches = branches
        self._inputs = inputs
        self.live: dict[str, LiveRun] = {}

    def find_live(self, project: str, run_id: str, *, surface: str = RESPONSES) -> LiveRun | None:
        """The run, if it goes on in this process and may be looked up."""
        run = self.live.get(run_id)
        if run is None or run.project != project or run.state.started.surface != surface:
            return None
        return run if run.stored else None

    async def view(self, project: str, run_id: str, *, surface: str = RESPONSES) -> RunView:
        """How a run stands; nothing in it is not durable. Raises NotFound."""
        run = self.find_live(project, run_id, surface=surface)
        if run is not None and run.writer.failure is None:
            await run.writer.settled()
            if run.state.ended is None:
                return run.view()
            await asyncio.shield(run.done)
        row = await self.row_of(project, run_id, surface=surface)
        state = await self.fold(project, row)
        return state.view(settings=await self._inputs.expand(state.started.settings))

    async def page(self, project: str, *, after: str, before: str = "", limit: int, descending: bool) -> list[RunView]:
        """Views of runs by age, one more than `limit` when there are more. Raises InvalidRequest on unknown cursors."""
        await check_cursors(partial(self._index.run, project), "response", after=after, before=before)
        while True:
            rows = await self._index.runs(
                project, surface=RESPONSES, after=after, before=before, limit=limit + 1, descending=descending
            )
            with suppress(NotFound):  # one of them was erased since: the index knows, and is asked again
                states = [await self.fold(project, row) for row in rows]
                return [state.view(settings=await self._inputs.expand(state.started.settings)) for state in states]

    async def input_items(self, project: str, run_id: str) -> list[ContextItem]:
        """All items that the run was given, oldest first: those of its branch before it, then its own input."""
        row = await self.row_of(project, run_id)
        branch = await self._branches.open(project, row.branch)
        state = await self.fold(project, row)
        return [*items_before(branch.state, row.start), *state.input_items(row.start)]

    async def entries(self, project: str, run_id: str) -> list[Entry]:
        """What the journal holds of the run, in its order; nothing in it is not durable. Raises NotFound."""
        row = await self.row_of(project, run_id)
        return await self._journal.read(project, row.branch, run=row.start)

    async def shown(self, held: ContextItem) -> ContextItem:
        """The item with its images in place."""
        return ContextItem(held.id, await self._inputs.shown(held.item), held.seq)

    async def with_images(self, view: RunView) -> RunView:
        """The same with the images of its output in place."""
        if not any(output.item.get("type") == "code_interpreter_call" for output in view.output):
            return view
        output = [msgspec.structs.replace(held, item=await self._inputs.shown(held.item)) for held in view.output]
        return msgspec.structs.replace(view, output=output)

    async def follow(self, project: str, run_id: str, *, after: int) -> LiveStream:
        """The stream of a run, with the frames beyond `after` at least. Raises NotFound, InvalidRequest."""
        run = self.find_live(project, run_id)
        if run is not None and run.stream is not None:
            return run.stream
        if run is not None:
            raise _not_streamed(run_id)
        row = await self.row_of(project, run_id)
        state = await self.fold(project, row)
        if not state.started.frames:
            raise _not_streamed(run_id)
        frames = await self._journal.frames(project, row.branch, row.start, after=after)
        if not frames and not await self._journal.frames(project, row.branch, row.start):
            message = f"The stream of response '{run_id}' is no longer kept. Retrieve the response without `stream`."
            raise InvalidRequest(message, code="stream_expired", param="stream")
        stored = LiveStream(frames)
        stored.end(cut=row.end < 0)
        return stored

    async def row_of(self, project: str, run_id: str, *, surface: str = RESPONSES) -> RunRow:
        row = await self._index.run(project, run_id)
        if row is None or row.surface != surface:
            raise response_not_found(run_id)
        return row

    async def fold(self, project: str, row: RunRow) -> RunState:
        state = fold_run(await self._journal.read(project, row.branch, run=row.start))
        if state is None:
            raise response_not_found(row.id)
        return state


def response_not_found(run_id: str) -> NotFound:
    """Missing, deleted and foreign look the same."""
    return NotFound(f"Response with id '{run_id}' not found.", code="response_not_found", param="response_id")


def conversation_not_found(conversation_id: str, param: str = "conversation_id") -> NotFound:
    """Missing, deleted and foreign look the same."""
    return NotFound(f"Conversation with id '{conversation_id}' not found.", code="conversation_not_found", param=param)


def _not_streamed(run_id: str) -> InvalidRequest:
    return InvalidRequest(
        f"Response '{run_id}' has no stream: it was created with neither `stream` nor `background`. "
        "Retrieve it without `stream`.",
        code="response_not_streamed",
        param="stream",
    )
