"""What goes on beside everything else: idle processes end, containers go that nobody needs, content that nothing names.

It gives way to everything: after each piece of work it rests four times as long. What it has done is in the journal and
in the content store; it may be killed anywhere, and begins anew.

Content is swept at a fixed pace. What erases responses only has the containers of chains looked at, once for all that
was erased in the meantime.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Final, NamedTuple

from stateroom.clock import Clock
from stateroom.errors import NotFound, StateroomError
from stateroom.journal.store import Index, Journal
from stateroom.runtime.containers.containers import Containers
from stateroom.runtime.containers.egress import KEPT_MAX as DECISIONS_MAX
from stateroom.runtime.containers.egress import ContainerEgress
from stateroom.runtime.containers.leaving import each_container
from stateroom.runtime.containers.named import Named, NamedContent
from stateroom.runtime.containers.state import IDLE, CommitNote, Container, read_note
from stateroom.runtime.records import Held
from stateroom.settings import RetentionSettings
from stateroom.workspaces.live.workspaces import Workspace

log = logging.getLogger("stateroom.containers")

LOOK_SECONDS: Final = 5.0
"""Between two looks for workspaces that are idle."""
SWEEP_SECONDS: Final = 600.0
"""Between two looks for containers that are to go, and for content that nothing names."""
UNNAMED_SECONDS: Final = 300.0
"""How long it may take from content that is written to the record that names it."""
GATHER_SECONDS: Final = 1.0
"""At least, between two looks for containers whose chain was erased."""
REST_FACTOR: Final = 4.0
REST_SECONDS: Final = 0.01
REST_SECONDS_MAX: Final = 1.0
WORK_SECONDS: Final = 0.002
"""How long it works before it rests. Others wait for so long, and for the container that it is at."""
_RECENT: Final = 8
"""Commits, the latest, whose responses are looked for before the chain is."""
_DAY: Final = 24 * 3_600 * 1000


class Swept(NamedTuple):
    """How much has gone."""

    containers: int = 0
    commits: int = 0
    bytes: int = 0


class ContainerUpkeep:
    """Looks after the containers of this process."""

    def __init__(
        self,
        containers: Containers,
        journal: Journal,
        index: Index,
        clock: Clock,
        of_project: Callable[[str], RetentionSettings],
    ) -> None:
        self._containers = containers
        self._parts = containers.parts
        self._egress = ContainerEgress(containers)
        self._journal = journal
        self._index = index
        self._clock = clock
        self._of_project = of_project
        self._names = NamedContent(containers.held)
        self._erased = asyncio.Event()
        self._worked_since = 0.0
        self._parts.live.keep = self._keep_idle

    def erased(self) -> None:
        """Something of a chain was erased: its containers may have to go."""
        self._erased.set()

    async def run(self) -> None:
        """Go on until cancelled."""
        swept_at = -SWEEP_SECONDS
        may_look_at = 0.0
        await self._try("folders", self._adopt)
        while True:
            await self._try("idle", self.stop_idle)
            began = self._clock.monotonic()
            if began - swept_at >= SWEEP_SECONDS:
                swept_at = began
                self._erased.clear()
                await self._try("containers", self._sweep_and_tell)
            elif self._erased.is_set() and began >= may_look_at:
                self._erased.clear()
                await self._try("chains", self._drop_orphans_and_tell)
                took = self._clock.monotonic() - began
                may_look_at = began + took + max(GATHER_SECONDS, REST_FACTOR * took)
            await self._wait(may_look_at)

    async def _wait(self, may_look_at: float) -> None:
        """Until the next look for something is due."""
        pause = may_look_at - self._clock.monotonic()
        if pause > 0:
            await self._clock.sleep(min(pause, LOOK_SECONDS))
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._erased.wait(), LOOK_SECONDS)

    async def start(self) -> None:
        """See to what an earlier process left. Comes before anything asks for a container."""
        await self._parts.live.begin()

    async def _adopt(self) -> None:
        """Commit what stands in folders that nobody works in, and remove those that belong to nothing.

        A crash leaves such folders; so does a client that puts files into a container and no more, or asks for them.
        """
        for workspace_id, standing in await self._parts.live.folders():
            if (standing is not None and standing.clean) or self._parts.live.is_at_work(workspace_id):
                continue
            held = None if standing is None else await self._containers.held.get(standing.project, workspace_id)
            if held is None:
                await self._remove_unknown(workspace_id)
                continue
            workspace = await self._containers.workspace(held)
            if await self._keep_idle(workspace):
                await workspace.rest()
            await self._clock.sleep(REST_SECONDS)

    async def _remove_unknown(self, workspace_id: str) -> None:
        """A folder that belongs to no container, unless one is being made of it just now."""
        async with self._containers.changing(workspace_id):
            if not self._parts.live.knows(workspace_id):
                await self._parts.live.forget(workspace_id)

    async def stop_idle(self) -> None:
        """End the processes that nobody has asked for in a while, and what they know is kept."""
        await self._parts.live.stop_idle()

    async def sweep(self) -> Swept:
        """Look once through all containers, and then for content that none of them names. Raises StorageError."""
        gone = thinned = 0
        began = self._clock.now()
        self._worked_since = self._clock.monotonic()
        named: set[str] = set()
        there: set[tuple[str, str]] = set()
        for project in await self._index.projects():
            kept = self._of_project(project)
            async with aclosing(each_container(self._containers.held, project)) as containers:
                async for held in containers:
                    if await self._is_over(held, kept):
                        gone += await self._drop(held)
                        continue
                    there.add((project, held.id))
                    known = await self._names.of(held)
                    if less := await self._thin(held, known):
                        self._names.forget(held)
                        known = await self._names.of(held)
                        thinned += less
                    named.update(known.digests(held))
                    await self._rest()
        self._names.keep_only(there)
        # What was put shortly before the first container was looked at may not have been named by then.
        freed = await self._parts.content.collect(named, began - UNNAMED_SECONDS)
        await self._adopt()
        await self._parts.live.trim()
        if self._parts.skills is not None:
            await self._parts.skills.let_go()
        return Swept(gone, thinned, freed)

    async def drop_orphans(self) -> int:
        """Look once for containers of whose chain nothing is left, and drop them; how many. Raises StorageError."""
        gone = 0
        self._worked_since = self._clock.monotonic()
        for project in await self._index.projects():
            async with aclosing(each_container(self._containers.held, project)) as containers:
                async for held in containers:
                    if held.state.chain and not await self._chain_lives(held):
                        gone += await self._drop(held)
                    await self._rest()
        return gone

    async def _rest(self) -> None:
        """Between two pieces of work."""
        took = self._clock.monotonic() - self._worked_since
        if took >= WORK_SECONDS:
            await self._clock.sleep(min(REST_FACTOR * took, REST_SECONDS_MAX))
            self._worked_since = self._clock.monotonic()

    async def _drop_orphans_and_tell(self) -> None:
        if gone := await self.drop_orphans():
            log.info("containers.swept containers=%d commits=0 bytes=0", gone)

    async def _sweep_and_tell(self) -> None:
        swept = await self.sweep()
        if any(swept):
            log.info("containers.swept containers=%d commits=%d bytes=%d", swept.containers, swept.commits, swept.bytes)

    async def _keep_idle(self, workspace: Workspace) -> bool:
        """Commit what a workspace has before its processes end; False when that could not be."""
        container_id, project = workspace.id, workspace.project
        try:
            async with self._containers.changing(container_id):
                held = await self._containers.get(project, container_id)
                await self._containers.keep(held, workspace, IDLE)
        except NotFound:  # dropped meanwhile: there is nothing to be kept
            return True
        except StateroomError as error:
            log.warning("containers.not_kept container=%s code=%s", container_id, error.code)
            return False
        return True

    async def _is_over(self, held: Held[Container], kept: RetentionSettings) -> bool:
        active = self._containers.active_at(held)
        if kept.containers_days and active <= self._parts.records.now() - kept.containers_days * _DAY:
            return True
        return bool(held.state.chain) and not await self._chain_lives(held)

    async def _chain_lives(self, held: Held[Container]) -> bool:
        """Whether anything is left of the chain that a container was made for, its forks included.

        Whoever named the container in another response has made it that one's as well.
        """
        if await self._response_lives(held, most=_RECENT):
            return True
        return await self._branch_lives(held) or await self._response_lives(held)

    async def _response_lives(self, held: Held[Container], most: int = 0) -> bool:
        """Whether one of the responses is there that committed it, among the latest; 0: among all."""
        seen = 0
        async with aclosing(self._containers.commits(held).each()) as commits:
            async for note in commits:
                if note.response and await self._index.run(held.project, note.response) is not None:
                    return True
                seen += 1
                if seen == most:
                    break
        return False

    async def _branch_lives(self, held: Held[Container]) -> bool:
        """Whether anything is left of the branch of the run that it was made for, or of a fork of that."""
        root = held.state.chain
        while (row := await self._journal.branch(held.project, root)) is not None and row.parent:
            root = row.parent
        waiting = [root]
        while waiting:
            branch = waiting.pop()
            if await self._index.needed(held.project, branch, -1) >= 0:
                return True
            if await self._index.runs_on(held.project, branch):
                return True
            waiting += [child.id for child in await self._index.children(held.project, branch)]
        return False

    async def _drop(self, held: Held[Container]) -> bool:
        try:
            await self._containers.delete(held.project, held.id)
        except NotFound:
            return False
        return True

    async def _thin(self, held: Held[Container], known: Named) -> int:
        """Let go of what is beyond what a container keeps; of how many commits."""
        if known.decisions > DECISIONS_MAX and await self._egress.thin(held):
            self._names.forget(held)
        most = self._parts.settings.commits
        if not most or known.commits <= most:
            return 0
        return await self._erase_commits(held, most)

    async def _erase_commits(self, held: Held[Container], most: int) -> int:
        """Erase the oldest commits but for so many. The one it stands at stays."""
        newer: set[str] = set()
        async with aclosing(self._containers.commits(held).each()) as commits:
            async for note in commits:
                if len(newer) == most:
                    break
                newer.add(note.id)
        head = held.state.head
        if head is not None:
            newer.add(head.id)

        def is_old(raw: object) -> bool:
            note = read_note(raw)  # type: ignore[arg-type]  # what notes are
            return isinstance(note, CommitNote) and note.id not in newer

        return await self._containers.held.erase_old_notes(held.project, held.id, is_old)

    async def _try(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except StateroomError as error:
            log.warning("containers.failed what=%s code=%s it is tried again", what, error.code)
        except Exception:  # whatever it is: the next look must come, and the trace is logged
            log.exception("containers.failed what=%s", what)
