"""`Workspace`: the files, processes and interpreter of one container, started when they are asked for.

Whoever holds one may hold it for as long as they like: its processes end and come back, its files leave the disk and
come back. Commands run beside each other; a commit stops them for a moment. What is put into the files from outside,
a commit, and the start and the end of the sandbox exclude each other.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from stateroom.errors import WorkspaceError
from stateroom.workspaces.channels.agent import Agent
from stateroom.workspaces.channels.interpreter import CellResult
from stateroom.workspaces.files.folder import Folder
from stateroom.workspaces.live.folder import LiveFolder
from stateroom.workspaces.live.processes import Processes
from stateroom.workspaces.live.shapes import (
    Commit,
    Executed,
    InterpreterState,
    Output,
    WorkspaceSpec,
    executed,
    new_commit_id,
    with_breach,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stateroom.workspaces.live.workspaces import Workspaces

__all__ = ["Commit", "Executed", "InterpreterState", "Output", "Workspace", "WorkspaceSpec", "new_commit_id"]

log = logging.getLogger("stateroom.workspaces")


class Workspace:
    """One of them; `Workspaces.open` gives it."""

    def __init__(self, live: Workspaces, spec: WorkspaceSpec, at: Commit | None) -> None:
        self._live = live
        self.spec = spec
        self._at = at
        self._disk = LiveFolder(live.root, spec.id, spec.project)
        self.folder = Folder(self._disk.files)
        """Its files; they are there after `prepare`, and after any call that uses them."""
        self._one = asyncio.Lock()
        """Held by whoever starts, ends or commits it, or changes files from outside."""
        self.editing = asyncio.Lock()
        """Held by whoever reads a file in order to write it anew."""
        self._processes = Processes(live, self)
        self._prepared = False
        self._doomed = False
        self._unkept = False
        """Whether something was done since the latest commit began."""
        self._offered = ""
        """A commit that was made of it and is not known to be kept."""
        self.busy = 0
        """Commands and cells that are under way."""
        self.used_at = live.clock.monotonic()
        self.active_at = int(live.clock.now() * 1000)
        """Milliseconds since the epoch."""

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def project(self) -> str:
        return self.spec.project

    @property
    def at(self) -> Commit | None:
        """The commit at which it stands, or from which it went on."""
        return self._at

    @property
    def is_live(self) -> bool:
        """Whether it has processes."""
        return self._processes.sandbox is not None

    @property
    def has_folder(self) -> bool:
        """Whether its files are on the disk."""
        return self._prepared or self._disk.stands_at(self._commit_id)

    @property
    def has_interpreter(self) -> bool:
        """Whether one is running."""
        return self._processes.interpreter is not None

    @property
    def interpreter_state(self) -> InterpreterState:
        """How the interpreter came to what it knows: `live` since it was started first, `fresh` with nothing."""
        return "fresh" if self._processes.interpreter is None else self._processes.interpreter.state

    @property
    def cells(self) -> int:
        """How many cells have run since the interpreter was started."""
        return self._processes.cells

    @property
    def lost(self) -> Mapping[str, str]:
        """Variables that did not come back, with their types."""
        return {} if self._processes.interpreter is None else self._processes.interpreter.lost

    def touch(self) -> None:
        """Somebody has asked for it."""
        self.used_at = self._live.clock.monotonic()
        self.active_at = int(self._live.clock.now() * 1000)

    @property
    def idle_seconds(self) -> float:
        """How long nobody has asked for it."""
        return 0.0 if self.busy else self._live.clock.monotonic() - self.used_at

    async def prepare(self) -> Folder:
        """Have its files on the disk. Raises StorageError."""
        async with self._one:
            await self._prepare()
        return self.folder

    async def execute(
        self,
        command: str,
        *,
        timeout: float,
        output_bytes: int,
        on_output: Output | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Executed:
        """Carry a command out, in a shell of its own. Raises NoSandbox, SandboxFailed, StorageError."""
        with self.working():
            agent, restarted = await self._running()
            finished = await self._processes.execute(
                agent,
                command,
                timeout=timeout,
                output_bytes=output_bytes,
                on_output=on_output,
                environment=environment,
            )
            return executed(finished, restarted, await self._looked())

    async def run_code(
        self, code: str, *, timeout: float, output_bytes: int, on_output: Output | None = None
    ) -> CellResult:
        """Carry code out in the interpreter, one cell after the other. Raises as `execute`."""
        with self.working():
            async with self._processes.one_cell:
                agent, _ = await self._running()
                result = await self._processes.run_code(
                    agent, self._at, code, timeout=timeout, output_bytes=output_bytes, on_output=on_output
                )
            return with_breach(result, await self._looked())

    @property
    def jobs(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Commands whose processes ran when last looked at; those of which nobody was told that they ended."""
        return self._processes.jobs.shown(is_well=self._processes.is_well) if self._prepared else ((), self._left_then)

    def take_ended(self) -> tuple[str, ...]:
        """What commands left running and has ended, for whoever tells it: once. Comes after a call."""
        return self._processes.jobs.take()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Its processes are not ended to make room, nor for being idle, meanwhile."""
        self.busy += 1
        self.touch()
        try:
            yield
        finally:
            self.busy -= 1
            self._unkept = True
            self.touch()
            self._live.rested()

    async def running(self) -> Agent:
        """Its agent, for whoever starts processes of another kind. Raises as `execute`."""
        self.touch()
        return (await self._running())[0]

    async def write(self, path: str, pieces: AsyncIterator[bytes], *, bytes_max: int | None = None) -> None:
        """Put a file in place, whole or not at all. Raises InvalidRequest, StorageFull."""
        async with self._one:
            await self._prepare()
            self._unkept = True
            writer = await asyncio.to_thread(self.folder.writer, path, bytes_max=bytes_max)
            try:
                async for piece in pieces:
                    await asyncio.to_thread(writer.write, piece)
                await asyncio.to_thread(writer.finish)
            finally:
                await asyncio.to_thread(writer.abort)
        self.touch()

    async def remove(self, path: str) -> None:
        """Delete a file. Raises NotFound, InvalidRequest."""
        async with self._one:
            await self._prepare()
            self._unkept = True
            await asyncio.to_thread(self.folder.delete, path)
        self.touch()

    async def commit(self) -> Commit | None:
        """Keep what it holds in the content store; None when nothing has changed. Raises StorageError.

        It stands at that commit only when `kept` has said so: until then the next call begins from the same one.
        """
        async with self._one:
            began = self._live.clock.monotonic()
            made = await self._commit()
            if made is not None:
                self._live.committed(self.id, made, self._live.clock.monotonic() - began)
            return made

    async def kept(self, commit: Commit) -> None:
        """A commit is known to the journal."""
        async with self._one:
            self._at = commit
            self._offered = ""
            self._processes.kept()
            self._live.stand(self.id, commit)
            with suppress(WorkspaceError):
                await asyncio.to_thread(self._disk.say, commit.id, left=self._processes.jobs.left)

    async def stop(self, *, if_idle: bool = False) -> bool:
        """End its processes, and whether that was done; the files stay. `if_idle`: unless somebody works in it."""
        async with self._one:
            if if_idle and self.busy:
                return False
            await self._processes.stop()
            return True

    async def rest(self) -> None:
        """It was committed: as long as nobody asks for its files they may leave the disk.

        Unless something was done since. Files that nothing can go on with leave it at once.
        """
        async with self._one:
            if self.busy or self.is_live or self._unkept or self._offered:
                return
            if self._prepared:
                await asyncio.to_thread(self._disk.say, self._commit_id, clean=True, left=self._processes.jobs.left)
                self._prepared = False
            elif not await asyncio.to_thread(self._disk.stands_at, self._commit_id):
                await asyncio.to_thread(self._disk.remove)

    async def discard(self, *, if_clean: bool = False) -> bool:
        """End its processes and remove its files from the disk, whatever they hold; whether that was done.

        `if_clean`: unless somebody works in it, or they hold what no commit has.
        """
        async with self._one:
            if if_clean:
                said = await asyncio.to_thread(self._disk.read)
                if self.busy or self.is_live or said is None or not said.clean:
                    return False
            await self._processes.stop()
            self._prepared, self._offered = False, ""
            await asyncio.to_thread(self._disk.remove)
            self._live.content.forget(self.id)
            return True

    def doom(self) -> None:
        """Its container is gone: nothing is started any more."""
        self._doomed = True

    def move(self, at: Commit | None) -> None:
        """It stands at another commit now. Comes after `discard`."""
        self._at = at

    # Beneath: the caller has `_one`.

    @property
    def _commit_id(self) -> str:
        return "" if self._at is None else self._at.id

    @property
    def _left_then(self) -> tuple[str, ...]:
        """What was left running at the commit from which it goes on."""
        return () if self._at is None else self._at.left

    async def _prepare(self) -> None:
        if self._doomed:
            raise WorkspaceError("The container was deleted.", code="container_not_found")
        if self._prepared:
            return
        at = self._at

        def put(folder: Folder) -> None:
            if at is not None:
                self._live.content.put_in_place(at.tree, folder)

        await asyncio.to_thread(self._disk.prepare, self._commit_id, put, self.folder, self._left_then)
        standing = await asyncio.to_thread(self._disk.standing)
        self._processes.jobs.load(() if standing is None else standing.left)
        if standing is not None and standing.clean:
            await asyncio.to_thread(self._disk.say, self._commit_id, left=standing.left)
        self._own()
        self._prepared = True

    async def _commit(self) -> Commit | None:
        if not self._prepared:
            said = await asyncio.to_thread(self._disk.standing)
            if said is None or not said.stands_at(self._commit_id) or said.holds_only(self._commit_id):
                return None
            await self._prepare()
        self._unkept = self.busy > 0
        await self._processes.look()
        self._processes.jobs.settle()
        blob, skipped, lost = await self._processes.save()
        frozen = await self._processes.freeze()
        try:
            tree = await self._live.content.snapshot_of(self.id, self.folder)
        finally:
            if frozen is not None:
                await self._processes.thaw(frozen)
        at = self._at
        interpreter = ""
        if at is not None and blob is None and not skipped:  # no cell ran: the variables are those of the last commit
            interpreter, lost = at.interpreter, at.lost
        if blob is not None:
            interpreter = await self._live.content.keep_blob(blob)
        left = self._processes.jobs.left
        is_same = at is not None and (at.tree, at.interpreter, at.left) == (tree.digest, interpreter, left)
        if is_same or (at is None and not tree.files and not interpreter and not left):
            await self._processes.jobs.keep(self._disk)
            return None
        made = Commit(
            id=new_commit_id(),
            tree=tree.digest,
            interpreter=interpreter,
            files=tree.files,
            bytes=tree.bytes,
            new_bytes=tree.new_bytes,
            skipped=skipped,
            lost=lost,
            left_out=tree.skipped_count,
            left=left,
        )
        await asyncio.to_thread(self._disk.say, self._commit_id, following=made.id, left=left)
        self._offered = made.id
        return made

    async def _looked(self) -> str:
        """Have it on the disk what is left running; the limit for which processes were ended meanwhile, in words."""
        self._processes.note_breach()
        if self._processes.jobs.left:
            async with self._one:
                await self._processes.look()
                await self._processes.jobs.keep(self._disk)
        return self._processes.take_breach()

    async def _running(self) -> tuple[Agent, bool]:
        """The agent of its sandbox, and whether that had to be started after it had died."""
        processes = self._processes
        async with self._one:
            if processes.agent is not None and processes.is_well:
                if processes.started_as == self.spec or self.busy > 1:
                    return processes.agent, False
                await processes.stop()  # what it is to be has changed
            died = processes.sandbox is not None
            await processes.stop()
            await self._prepare()
            agent = await processes.start()
            self._own()
            if died:
                log.warning("workspace.died workspace=%s it is started anew", self.id)
            return agent, died

    def _own(self) -> None:
        """What is written from outside belongs to whom the sandbox runs as; to whom it did, while there is none."""
        if self._processes.sandbox is not None:
            self.folder.owner = self._processes.sandbox.owner
            return
        status = self.folder.path.stat()
        self.folder.owner = None if status.st_uid == os.geteuid() else (status.st_uid, status.st_gid)
