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
from typing import TYPE_CHECKING, Final

from stateroom.errors import SandboxDied, SandboxFailed, WorkspaceError
from stateroom.workspaces.channels.agent import Agent
from stateroom.workspaces.channels.interpreter import CellResult, Interpreter
from stateroom.workspaces.channels.process import Job
from stateroom.workspaces.files.folder import Folder
from stateroom.workspaces.live.folder import LiveFolder
from stateroom.workspaces.live.shapes import (
    Commit,
    Decoding,
    Executed,
    InterpreterState,
    Output,
    WorkspaceSpec,
    executed,
    new_commit_id,
    with_breach,
)
from stateroom.workspaces.workspace import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stateroom.workspaces.live.workspaces import Workspaces

__all__ = ["Commit", "Executed", "InterpreterState", "Output", "Workspace", "WorkspaceSpec", "new_commit_id"]

log = logging.getLogger("stateroom.workspaces")

SHELL: Final = ("/bin/bash", "-c")


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
        self._cells = asyncio.Lock()
        self.editing = asyncio.Lock()
        """Held by whoever reads a file in order to write it anew."""
        self._sandbox: Sandbox | None = None
        self._agent: Agent | None = None
        self._started_as: WorkspaceSpec | None = None
        self._interpreter: Interpreter | None = None
        self._ran = 0
        """Cells since the interpreter was started."""
        self._saved = 0
        """How many of them the commit at which it stands has."""
        self._saving = 0
        self._prepared = False
        self._doomed = False
        self._unkept = False
        """Whether something was done since the latest commit began."""
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
        return self._sandbox is not None

    @property
    def has_folder(self) -> bool:
        """Whether its files are on the disk."""
        return self._prepared or self._disk.stands_at(self._commit_id)

    @property
    def has_interpreter(self) -> bool:
        """Whether one is running."""
        return self._interpreter is not None

    @property
    def interpreter_state(self) -> InterpreterState:
        """How the interpreter came to what it knows: `live` since it was started first, `fresh` with nothing."""
        return "fresh" if self._interpreter is None else self._interpreter.state

    @property
    def cells(self) -> int:
        """How many cells have run since the interpreter was started."""
        return self._ran

    @property
    def lost(self) -> Mapping[str, str]:
        """Variables that did not come back, with their types."""
        return {} if self._interpreter is None else self._interpreter.lost

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
            told = None if on_output is None else Decoding(on_output)
            try:
                finished = await agent.run(
                    (*SHELL, command), timeout=timeout, keep_bytes=output_bytes, env=environment, on_output=told
                )
            except SandboxFailed as error:
                raise SandboxDied(error.message) from error
            if told is not None:
                told.finish()
            return executed(finished, restarted, self._breach())

    async def run_code(
        self, code: str, *, timeout: float, output_bytes: int, on_output: Output | None = None
    ) -> CellResult:
        """Carry code out in the interpreter, one cell after the other. Raises as `execute`."""
        with self.working():
            async with self._cells:
                interpreter = await self._interpreting()
                self._ran += 1
                result = await interpreter.run(code, timeout=timeout, output_bytes=output_bytes, on_output=on_output)
                return with_breach(result, self._breach())

    async def jobs(self) -> tuple[Job, ...]:
        """What outlived its command. Raises SandboxFailed."""
        agent = self._agent
        return () if agent is None or not self._is_well() else await agent.jobs()

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
                self._meter(made, self._live.clock.monotonic() - began)
            return made

    async def kept(self, commit: Commit) -> None:
        """A commit is known to the journal."""
        async with self._one:
            self._at = commit
            self._saved = max(self._saved, self._saving)
            self._live.stand(self.id, commit)
            with suppress(WorkspaceError):
                await asyncio.to_thread(self._disk.say, commit.id)

    async def stop(self, *, if_idle: bool = False) -> bool:
        """End its processes, and whether that was done; the files stay. `if_idle`: unless somebody works in it."""
        async with self._one:
            if if_idle and self.busy:
                return False
            await self._stop()
            return True

    async def rest(self) -> None:
        """It was committed: as long as nobody asks for its files they may leave the disk.

        Unless something was done since. Files that nothing can go on with leave it at once.
        """
        async with self._one:
            if self.busy or self.is_live or self._unkept:
                return
            if self._prepared:
                await asyncio.to_thread(self._disk.say, self._commit_id, clean=True)
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
            await self._stop()
            self._prepared = False
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

    async def _prepare(self) -> None:
        if self._doomed:
            raise WorkspaceError("The container was deleted.", code="container_not_found")
        if self._prepared:
            return
        at = self._at

        def put(folder: Folder) -> None:
            if at is not None:
                self._live.content.put_in_place(at.tree, folder)

        await asyncio.to_thread(self._disk.prepare, self._commit_id, put, self.folder)
        standing = await asyncio.to_thread(self._disk.standing)
        if standing is not None and standing.clean:
            await asyncio.to_thread(self._disk.say, self._commit_id)
        self._own()
        self._prepared = True

    async def _commit(self) -> Commit | None:
        if not self._prepared:
            if not await asyncio.to_thread(self._disk.stands_at, self._commit_id):
                return None
            await self._prepare()
        self._unkept = self.busy > 0
        blob, skipped, lost = await self._save()
        sandbox = self._sandbox
        frozen = sandbox is not None and self._is_well() and await _freeze(sandbox)
        try:
            tree = await self._live.content.snapshot_of(self.id, self.folder)
        finally:
            if frozen and sandbox is not None:
                await sandbox.thaw()
        at = self._at
        interpreter = at.interpreter if at is not None and blob is None and not skipped else ""
        if blob is not None:
            interpreter = await self._live.content.keep_blob(blob)
        if at is None and not tree.files and not interpreter:
            return None
        if at is not None and (at.tree, at.interpreter) == (tree.digest, interpreter):
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
        )
        await asyncio.to_thread(self._disk.say, self._commit_id, following=made.id)
        return made

    async def _save(self) -> tuple[bytes | None, bool, dict[str, str]]:
        """The variables, when a cell ran since they were kept; whether they could not be; what is not among them."""
        interpreter, settings = self._interpreter, self._live.settings
        if interpreter is None or self._ran == self._saved or not self._is_well():
            return None, False, {}
        try:
            async with asyncio.timeout(settings.state_seconds):
                await self._cells.acquire()
        except TimeoutError:  # a cell is under way: what is kept stays what it was
            return None, False, {}
        try:
            self._saving = self._ran
            blob = await interpreter.save(bytes_max=settings.state_bytes, seconds_max=settings.state_seconds)
            return blob, blob is None, dict(interpreter.unsaved)
        except WorkspaceError as error:
            log.warning("workspace.variables_not_kept workspace=%s reason=%s", self.id, error.message)
            return None, True, {}
        finally:
            self._cells.release()

    def _meter(self, made: Commit, seconds: float) -> None:
        meter = self._live.meter
        meter.commits += 1
        meter.commit_bytes += made.new_bytes
        meter.commit_seconds.observe(seconds)
        counts = (made.files, made.bytes, made.new_bytes)
        log.debug(
            "workspace.committed workspace=%s files=%d bytes=%d new_bytes=%d ms=%.1f", self.id, *counts, seconds * 1000
        )

    def _breach(self) -> str:
        said = "" if self._sandbox is None else self._sandbox.breach()
        if said:
            self._live.meter.breaches += 1
            log.warning("workspace.breach workspace=%s reason=%s", self.id, said)
        return said

    def _is_well(self) -> bool:
        sandbox, agent = self._sandbox, self._agent
        return sandbox is not None and sandbox.is_alive and agent is not None and agent.is_alive

    async def _running(self) -> tuple[Agent, bool]:
        """The agent of its sandbox, and whether that had to be started after it had died."""
        async with self._one:
            if self._agent is not None and self._is_well():
                if self._started_as == self.spec or self.busy > 1:
                    return self._agent, False
                await self._stop()  # what it is to be has changed
            died = self._sandbox is not None
            await self._stop()
            await self._prepare()
            await self._start()
            assert self._agent is not None, "it was started"
            if died:
                log.warning("workspace.died workspace=%s it is started anew", self.id)
            return self._agent, died

    async def _start(self) -> None:
        sandbox = await self._live.start(self)
        try:
            self._agent = await Agent.connect(sandbox)
        except BaseException:
            await self._live.end(self, sandbox)
            raise
        self._sandbox = sandbox
        self._started_as = self.spec
        self._own()

    def _own(self) -> None:
        """What is written from outside belongs to whom the sandbox runs as; to whom it did, while there is none."""
        if self._sandbox is not None:
            self.folder.owner = self._sandbox.owner
            return
        status = self.folder.path.stat()
        self.folder.owner = None if status.st_uid == os.geteuid() else (status.st_uid, status.st_gid)

    async def _interpreting(self) -> Interpreter:
        agent, _ = await self._running()
        if self._interpreter is not None:
            return self._interpreter
        at = self._at
        interpreter = Interpreter(agent)
        if at is not None and at.interpreter:
            await interpreter.restore(await self._live.content.get_blob(at.interpreter))
        self._interpreter, self._ran, self._saved = interpreter, 0, 0
        return interpreter

    async def _stop(self) -> None:
        sandbox, agent, interpreter = self._sandbox, self._agent, self._interpreter
        self._sandbox = self._agent = self._interpreter = None
        self._ran = self._saved = self._saving = 0
        if interpreter is not None:
            with suppress(WorkspaceError):
                await interpreter.close()
        if agent is not None:
            await agent.close()
        if sandbox is not None:
            await self._live.end(self, sandbox)


async def _freeze(sandbox: Sandbox) -> bool:
    try:
        await sandbox.freeze()
    except SandboxFailed:
        return False
    return True
