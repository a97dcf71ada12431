"""Chat completions that were stored: list, look up, change the metadata, erase. Each is a run that stands alone.

New metadata is appended to the run's own branch, as a record: what was said before stays in the journal's history, and
whatever erases the run erases it, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Final

import msgspec

from stateroom.errors import InvalidRequest, NotFound
from stateroom.journal.entries import Item, RunView
from stateroom.journal.store import Index, RunRow
from stateroom.runtime.branches import Branches
from stateroom.runtime.cursors import check_cursors
from stateroom.runtime.inputs import Inputs
from stateroom.runtime.records import Records
from stateroom.runtime.runs import Runs

CHAT: Final = "chat"
"""The surface of these runs."""

SHOWN: Final = frozenset(("completed", "incomplete"))
"""Ends of runs that have an answer."""

_PAGE: Final = 100
"""Runs that are looked at in one go for those that a filter asks for."""


class ChatMetadata(msgspec.Struct, frozen=True):
    """What a completion's metadata became."""

    metadata: dict[str, str]


class ChatCompletions:
    """All stored completions, by the ids of their runs."""

    def __init__(self, index: Index, branches: Branches, runs: Runs, inputs: Inputs, records: Records) -> None:
        self._index = index
        self._branches = branches
        self._runs = runs
        self._inputs = inputs
        self._records = records.collection("chat_metadata", ChatMetadata)

    async def get(self, project: str, run_id: str) -> RunView:
        """Raises NotFound; InvalidRequest `completion_in_progress` before it has ended."""
        await self._row(project, run_id)
        return await self._current(project, await self._runs.view(project, run_id, surface=CHAT))

    async def page(
        self,
        project: str,
        *,
        after: str,
        before: str = "",
        limit: int,
        descending: bool,
        model: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> list[RunView]:
        """Those with an answer, by age, of this model and with all of this metadata; one more than `limit`.

        Raises InvalidRequest on unknown cursors.
        """
        await check_cursors(partial(self._index.run, project), "chat completion", after=after, before=before)
        found: list[RunView] = []
        while True:
            rows = await self._index.runs(
                project, surface=CHAT, after=after, before=before, limit=_PAGE, descending=descending
            )
            for row in rows:
                if row.status not in SHOWN:
                    continue
                try:
                    view = (await self._runs.fold(project, row)).view()
                except NotFound:  # it was erased since
                    continue
                if model not in ("", view.settings.model, view.settings.served):
                    continue
                view = await self._current(project, view)
                if _has(view, metadata or {}):
                    found.append(view)
                    if len(found) > limit:
                        return found
            if len(rows) < _PAGE:
                return found
            after = rows[-1].id
            await asyncio.sleep(0)

    async def update(self, project: str, run_id: str, metadata: dict[str, str]) -> RunView:
        """Replace its metadata. Raises NotFound, InvalidRequest."""
        row = await self._row(project, run_id)
        branch = await self._branches.open(project, row.branch)
        await branch.take(queue_max=_PAGE, wait_seconds=10.0)
        try:
            await self._row(project, run_id)  # it may have been erased meanwhile
            writer = self._branches.writer(branch)
            writer.add(self._records.put(run_id, ChatMetadata(metadata)))
            await writer.commit(release=True)
        finally:
            branch.stale = True
            self._branches.done(branch)
        return await self.get(project, run_id)

    async def delete(self, project: str, run_id: str) -> None:
        """Erase it, whether it has ended or not. Raises NotFound."""
        try:
            await self._runs.delete(project, run_id, surface=CHAT)
        except NotFound:
            raise completion_not_found() from None

    async def messages(self, project: str, run_id: str) -> list[Item]:
        """What it was asked, with images in place. Raises NotFound, InvalidRequest."""
        row = await self._row(project, run_id)
        state = await self._runs.fold(project, row)
        return [await self._inputs.shown(held.item) for held in state.input_items(row.start)]

    async def _row(self, project: str, run_id: str) -> RunRow:
        run = self._runs.find_live(project, run_id, surface=CHAT)
        if run is not None and run.state.ended is not None:
            await asyncio.shield(run.done)
        row = await self._index.run(project, run_id)
        if row is None or row.surface != CHAT or (row.end >= 0 and row.status not in SHOWN):
            raise completion_not_found()
        if row.end < 0:
            waiting = InvalidRequest(
                "This chat completion is still being made. Ask again when it has ended, or delete it.",
                code="completion_in_progress",
                param="completion_id",
            )
            waiting.status = 409  # asking again is safe, and clients do so by themselves
            raise waiting
        return row

    async def _current(self, project: str, view: RunView) -> RunView:
        """The view with the metadata that it was given last."""
        held = await self._records.get(project, view.id)
        if held is None:
            return view
        echo = {**view.settings.echo, "metadata": held.state.metadata}
        return msgspec.structs.replace(view, settings=msgspec.structs.replace(view.settings, echo=echo))


def _has(view: RunView, wanted: Mapping[str, str]) -> bool:
    if not wanted:
        return True
    metadata = view.settings.echo.get("metadata") or {}
    return all(metadata.get(name) == value for name, value in wanted.items())


def completion_not_found() -> NotFound:
    """Missing, deleted and foreign look the same."""
    return NotFound(
        "There is no such chat completion. Only those that were created with `store: true` are kept.",
        code="completion_not_found",
        param="completion_id",
    )
