"""`Workspaces`: the live set. How many have processes at a time is bounded, and so is what stays on the disk.

Whoever opens a workspace gets the one object that stands for it. The one that nobody has asked for the longest makes
room for the next. What its processes know is kept before they end, by whoever set `keep`: nobody here knows of a
journal.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from stateroom.clock import Clock
from stateroom.errors import NoSandbox, SandboxFailed, StateroomError, WorkspaceError
from stateroom.settings import WorkspaceSettings
from stateroom.telemetry.metrics import WorkspaceMeter
from stateroom.workspaces.content.store import ContentStore
from stateroom.workspaces.drivers.choice import Chosen
from stateroom.workspaces.egress.decisions import Decisions
from stateroom.workspaces.egress.proxy import EgressProxy
from stateroom.workspaces.live.folder import LiveFolder, Standing
from stateroom.workspaces.live.workspace import (
    Commit,
    Executed,
    InterpreterState,
    Workspace,
    WorkspaceSpec,
    new_commit_id,
)
from stateroom.workspaces.workspace import Driver, Mount, Sandbox, SandboxSpec

__all__ = [
    "Commit",
    "Executed",
    "InterpreterState",
    "Workspace",
    "WorkspaceSpec",
    "Workspaces",
    "folders",
    "new_commit_id",
]

log = logging.getLogger("stateroom.workspaces")

ROOM_SECONDS: Final = 60.0
"""How long a workspace waits for another one to become idle."""
_SOCKET: Final = "egress.sock"
_STANDS_MAX: Final = 10_000


class Workspaces:
    """All workspaces of this process."""

    def __init__(
        self,
        root: Path,
        content: ContentStore,
        driver: Driver | None,
        settings: WorkspaceSettings,
        clock: Clock,
        *,
        egress: EgressProxy | None = None,
        reason: str = "",
        mounts: tuple[Mount, ...] = (),
        meter: WorkspaceMeter | None = None,
    ) -> None:
        """`driver` None: no process is started, for this `reason`; files can be put and read all the same.

        `mounts`: what every sandbox has beside what its workspace asks for.
        """
        self.root = root
        self.content = content
        self.settings = settings
        self.clock = clock
        self.keep: Callable[[Workspace], Awaitable[bool]] | None = None
        """Commits what a workspace has, and says whether that could be done."""
        self.on_end: list[Callable[[str], Awaitable[None]]] = []
        """Told that the processes of a workspace are gone, for what was connected to them."""
        self._driver = driver
        self.egress = egress
        self.decided = Decisions(clock) if egress is None else egress.decided
        """Where workspaces wanted to go, until it was written down."""
        self.meter = meter or WorkspaceMeter()
        self._reason = reason
        self._mounts = mounts
        self._known: WeakValueDictionary[str, Workspace] = WeakValueDictionary()
        self._places: dict[str, Workspace] = {}
        """Those that have a sandbox, or are about to."""
        self._stands: dict[str, Commit | None] = {}
        """The latest commit of each that this process has heard of."""
        self._rested = asyncio.Event()

    @property
    def count(self) -> int:
        """How many have processes."""
        return len(self._places)

    def check_driver(self) -> Driver:
        """Raises NoSandbox."""
        if self._driver is None:
            raise NoSandbox(self._reason or "Nothing on this machine isolates processes. See `stateroom doctor`.")
        if isinstance(self._driver, Chosen) and self._driver.why_not:
            raise NoSandbox(self._driver.why_not)
        return self._driver

    def open(self, spec: WorkspaceSpec, at: Commit | None) -> Workspace:
        """The workspace of this id. Nothing is started or written yet.

        `at`: the commit at which it stands, as far as the caller knows; what this process knows counts for more.
        """
        is_new = spec.id not in self._stands
        at = self._stands.setdefault(spec.id, at)
        workspace = self._known.get(spec.id)
        if workspace is None:
            workspace = self._known[spec.id] = Workspace(self, spec, at)
        elif is_new:
            workspace.move(at)
        if workspace.spec != spec:
            workspace.spec = spec
        if len(self._stands) > _STANDS_MAX:
            self._stands = {name: held for name, held in self._stands.items() if name in self._known}
        return workspace

    def stand(self, workspace_id: str, at: Commit | None) -> None:
        """A workspace stands at another commit."""
        self._stands[workspace_id] = at
        workspace = self._known.get(workspace_id)
        if workspace is not None:
            workspace.move(at)

    async def forget(self, workspace_id: str) -> None:
        """End the processes of a workspace that is gone, and remove its files from the disk."""
        workspace = self._known.get(workspace_id)
        if workspace is not None:
            workspace.doom()
            await workspace.discard()
            if self._known.get(workspace_id) is workspace:  # whoever still holds it has nothing of one that follows
                del self._known[workspace_id]
        else:
            await asyncio.to_thread(LiveFolder(self.root, workspace_id, "").remove)
        self._stands.pop(workspace_id, None)
        self.decided.forget(workspace_id)
        self.content.forget(workspace_id)

    def knows(self, workspace_id: str) -> bool:
        """Whether anybody in this process has opened it."""
        return workspace_id in self._known

    def is_at_work(self, workspace_id: str) -> bool:
        """Whether it has processes, or something is being done in it."""
        workspace = self._known.get(workspace_id)
        return workspace_id in self._places or (workspace is not None and workspace.busy > 0)

    def interpreter(self, workspace_id: str) -> tuple[str, dict[str, str]] | None:
        """How the interpreter of a workspace came to what it knows, and what it has lost; None: there is none."""
        workspace = self._known.get(workspace_id)
        if workspace is None or not workspace.has_interpreter:
            return None
        return workspace.interpreter_state, dict(workspace.lost)

    def jobs(self, workspace_id: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Commands that left processes running, which run or have ended; None: nobody in this process knows."""
        workspace = self._known.get(workspace_id)
        return None if workspace is None else workspace.jobs

    def active_at(self, workspace_id: str) -> int:
        """When somebody asked for it last, in milliseconds since the epoch; 0: nobody in this process."""
        workspace = self._known.get(workspace_id)
        return 0 if workspace is None else workspace.active_at

    def mounted(self) -> Collection[str]:
        """Folders that sandboxes have mounted now."""
        return {mount.source for workspace in self._places.values() for mount in workspace.spec.mounts}

    async def start(self, workspace: Workspace) -> Sandbox:
        """A sandbox for a workspace whose files are there. Raises NoSandbox, SandboxFailed."""
        driver = self.check_driver()
        await self._room(workspace)
        began = self.clock.monotonic()
        try:
            sandbox = await self._started(driver, workspace)
        except BaseException as error:
            self._leave(workspace)
            if isinstance(error, StateroomError):
                self.meter.starts.add((driver.name, error.code))
            raise
        seconds = self.clock.monotonic() - began
        self.meter.starts.add((driver.name, "ok"))
        self.meter.start_seconds.observe(seconds)
        log.debug("workspace.started workspace=%s driver=%s ms=%.1f", workspace.id, driver.name, seconds * 1000)
        return sandbox

    async def end(self, workspace: Workspace, sandbox: Sandbox) -> None:
        """End a sandbox that `start` gave."""
        log.debug("workspace.stopping workspace=%s", workspace.id)
        try:
            await sandbox.stop()
            if self.egress is not None:
                await self.egress.close(workspace.id)
        finally:
            self._leave(workspace)
            for tell in self.on_end:
                await tell(workspace.id)

    def committed(self, workspace_id: str, made: Commit, seconds: float) -> None:
        """A workspace was kept, in this time."""
        meter = self.meter
        meter.commits += 1
        meter.commit_bytes += made.new_bytes
        meter.commit_seconds.observe(seconds)
        said = (workspace_id, made.files, made.bytes, made.new_bytes, seconds * 1000)
        log.debug("workspace.committed workspace=%s files=%d bytes=%d new_bytes=%d ms=%.1f", *said)

    def rested(self) -> None:
        """A command has ended."""
        self._rested.set()

    async def stop_idle(self) -> int:
        """End the processes of workspaces that nobody has asked for in a while; of how many."""
        idle = [each for each in list(self._places.values()) if each.idle_seconds >= each.spec.idle_seconds]
        stopped = 0
        for workspace in idle:
            if not workspace.busy and await self._retire(workspace):
                stopped += 1
        return stopped

    async def folders(self) -> list[tuple[str, Standing | None]]:
        """The directories on the disk, by workspace."""
        return await asyncio.to_thread(folders, self.root)

    async def trim(self) -> int:
        """Remove directories of idle workspaces beyond those that are kept, the oldest first; how many."""
        most = self.settings.folders
        removed = 0
        for workspace_id, project in (await asyncio.to_thread(_clean_ones, self.root))[: -most or None]:
            workspace = self._known.get(workspace_id)
            if workspace is None:
                # Whoever opens it meanwhile gets this very one, and waits for its lock.
                spec = WorkspaceSpec(id=workspace_id, project=project, memory_bytes=0, idle_seconds=0)
                workspace = self._known[workspace_id] = Workspace(self, spec, None)
            removed += await workspace.discard(if_clean=True)
        return removed

    async def begin(self) -> None:
        """End what an earlier process of this installation left. Comes before the first workspace is opened."""
        await asyncio.to_thread(_make_root, self.root)
        if self._driver is not None:
            try:
                ended = await self._driver.sweep()
            except WorkspaceError as error:  # an engine that is down must not keep the rest from serving
                log.warning("workspaces.not_swept code=%s %s", error.code, error.message)
                ended = 0
            if ended:
                log.warning("workspaces.swept count=%d of an earlier process", ended)

    async def close(self) -> None:
        """Keep what the processes know, and end them all."""
        await asyncio.gather(*[self._retire(workspace) for workspace in list(self._places.values())])
        for workspace in list(self._places.values()):  # those that could not be kept: their files stay on the disk
            await workspace.stop()
        if self.egress is not None:
            await self.egress.close_all()

    async def _room(self, workspace: Workspace) -> None:
        """A place among those that have processes. Raises SandboxFailed when all are busy for too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ROOM_SECONDS
        while workspace.id not in self._places and len(self._places) >= self.settings.live:
            self._rested.clear()
            idle = [each for each in self._places.values() if not each.busy and each is not workspace]
            for oldest in sorted(idle, key=lambda each: each.used_at):
                if await self._retire(oldest):
                    break
            if len(self._places) < self.settings.live:
                break
            left = deadline - loop.time()
            if left <= 0:
                message = f"All {self.settings.live} workspaces are at work (`workspaces.live`). Try again later."
                raise SandboxFailed(message, code="too_many_workspaces")
            try:
                await asyncio.wait_for(self._rested.wait(), left)
            except TimeoutError:
                continue
        self._places[workspace.id] = workspace

    async def _retire(self, workspace: Workspace) -> bool:
        """End the processes of a workspace when what they know is kept."""
        try:
            if self.keep is not None and not await self.keep(workspace):
                return False
            if not await workspace.stop(if_idle=True):
                return False
            # What its processes did between that commit and their end.
            if self.keep is not None and await self.keep(workspace):
                await workspace.rest()
        except StateroomError as error:
            log.warning("workspaces.not_stopped workspace=%s code=%s", workspace.id, error.code)
            return False
        return True

    async def _started(self, driver: Driver, workspace: Workspace) -> Sandbox:
        spec, network = workspace.spec, workspace.spec.network
        files = workspace.folder.path.absolute()  # drivers hand it to programs that begin elsewhere
        socket, environment, mounts = "", {}, (*self._mounts, *spec.mounts)
        if network is not None and self.egress is not None:
            socket = str(files.parent / _SOCKET)
            await self.egress.open(workspace.id, network, socket)
            environment = self.egress.environment(network)
            mounts = (*mounts, *self.egress.mounts(network))
        try:
            sandbox = await driver.start(
                SandboxSpec(
                    id=spec.id,
                    files=str(files),
                    memory_bytes=spec.memory_bytes,
                    processes=self.settings.processes,
                    disk_bytes=self.settings.disk_bytes,
                    disk_files=self.settings.files,
                    mounts=mounts,
                    environment=environment,
                    egress=socket,
                )
            )
            if socket and self.egress is not None:
                self.egress.give(workspace.id, os.geteuid() if sandbox.owner is None else sandbox.owner[0])
            return sandbox
        except BaseException:
            if self.egress is not None:
                await self.egress.close(workspace.id)
            raise

    def _leave(self, workspace: Workspace) -> None:
        if self._places.get(workspace.id) is workspace:
            del self._places[workspace.id]
        self._rested.set()


def _make_root(root: Path) -> None:
    # Whoever runs in a sandbox has to reach their own folder through it, and is to list nothing on the way.
    root.mkdir(mode=0o711, parents=True, exist_ok=True)


def folders(root: Path) -> list[tuple[str, Standing | None]]:
    """The directories of workspaces, with what they say of themselves."""
    try:
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    return [(name, LiveFolder(root, name, "").read()) for name in names]


def _clean_ones(root: Path) -> list[tuple[str, str]]:
    """Directories that hold nothing but a commit, with their projects, the one that was used longest ago first."""
    found = [
        (LiveFolder(root, name, "").written_at, name, said.project)
        for name, said in folders(root)
        if said is not None and said.clean
    ]
    return [(name, project) for _, name, project in sorted(found)]
