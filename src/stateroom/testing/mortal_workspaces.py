"""Dying in the middle of a hosted tool's work: the parts of workspaces, passing kill points. See kill_points.py.

Each class here does what the one beneath it does and passes points around it. `make_workspaces_mortal` has a server
built of them; only test programs call it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import apsw

from stateroom import building
from stateroom.runtime.containers import upkeep
from stateroom.testing.kill_points import KillPoints
from stateroom.testing.sandboxes import strike
from stateroom.workspaces.channels.interpreter import CellResult
from stateroom.workspaces.content import database as content_database
from stateroom.workspaces.content.collect import Collected
from stateroom.workspaces.content.database import ContentDatabase
from stateroom.workspaces.content.file import ContentFile
from stateroom.workspaces.content.restore import Restore
from stateroom.workspaces.content.store import ContentStore
from stateroom.workspaces.drivers.local import LocalSandbox
from stateroom.workspaces.files.folder import Folder
from stateroom.workspaces.layout import LIVE
from stateroom.workspaces.live import workspaces as live_workspaces
from stateroom.workspaces.live.workspace import Commit, Executed, Output, Workspace
from stateroom.workspaces.live.workspaces import Workspaces
from stateroom.workspaces.workspace import Sandbox

HURRY_SECONDS: Final = {"LOOK_SECONDS": 0.5, "SWEEP_SECONDS": 2.0, "UNNAMED_SECONDS": 6.0}
"""Of the upkeep of containers. The last is still far more than it takes from content to the record that names it."""
STRUCK: Final = "struck"
"""Begins the line that a server prints when it has killed something else, with what and how many follow."""


def hurry() -> None:
    """Have containers looked after every few seconds."""
    for name, seconds in HURRY_SECONDS.items():
        setattr(upkeep, name, seconds)


def make_workspaces_mortal(points: KillPoints) -> None:
    """Have every server that is built from now on pass these points in its workspaces."""
    MortalRestore.points = points
    replaced: tuple[tuple[Any, str, Any], ...] = (
        (building, "ContentStore", partial(MortalContent, points)),
        (building, "Workspaces", partial(MortalWorkspaces, points)),
        (live_workspaces, "Workspace", MortalWorkspace),
        (content_database, "Restore", MortalRestore),
    )
    for module, name, part in replaced:
        setattr(module, name, part)


class MortalFile(ContentFile):
    """The file of the content store. Made of an open one."""

    points: KillPoints
    sweeping: threading.local

    @contextmanager
    def write(self) -> Iterator[apsw.Cursor]:
        sweeps = getattr(self.sweeping, "now", False)
        with super().write() as cursor:
            yield cursor
            self.points.reach("before_sweep" if sweeps else "before_content")
        self.points.reach("mid_sweep" if sweeps else "after_content")


class MortalDatabase(ContentDatabase):
    """The content store, which says when it sweeps. Made of an open one."""

    def collect(
        self, live: Iterable[str], *, keep_younger_than: float = 3600.0, rest_seconds: float = 0.005
    ) -> Collected:
        file = self._file
        assert isinstance(file, MortalFile)
        file.sweeping.now = True
        try:
            return super().collect(live, keep_younger_than=keep_younger_than, rest_seconds=rest_seconds)
        finally:
            file.sweeping.now = False
            file.points.reach("after_sweep")


class MortalContent(ContentStore):
    """The content store as the event loop sees it."""

    def __init__(self, points: KillPoints, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self._points = points
        file = self.database._file
        self.database.__class__ = MortalDatabase
        file.__class__ = MortalFile
        assert isinstance(file, MortalFile)
        file.points, file.sweeping = points, threading.local()

    def put_in_place(self, digest: str, folder: Folder) -> None:
        self._points.reach("before_materialise")
        super().put_in_place(digest, folder)
        self._points.reach("after_materialise")


class MortalRestore(Restore):
    """Files on their way from the content store into a folder."""

    points: KillPoints

    def _fill(self, descriptor: int, entry: Any) -> None:
        super()._fill(descriptor, entry)
        self.points.reach("mid_materialise")


class MortalSandbox(LocalSandbox):
    """A sandbox. Made of one that was started."""

    points: KillPoints

    async def freeze(self) -> None:
        self.points.reach("before_freeze")
        await super().freeze()
        self.points.reach("after_freeze")


class MortalWorkspaces(Workspaces):
    """The live set."""

    def __init__(self, points: KillPoints, root: Path, *given: Any, **options: Any) -> None:
        super().__init__(root, *given, **options)
        self.points = points
        points.strike = partial(_strike, root.parent.parent if str(root).endswith(LIVE) else root)

    async def start(self, workspace: Workspace) -> Sandbox:
        self.points.reach("before_start_sandbox")
        sandbox = await super().start(workspace)
        if isinstance(sandbox, LocalSandbox):
            sandbox.__class__ = MortalSandbox
            assert isinstance(sandbox, MortalSandbox)
            sandbox.points = self.points
        self.points.reach("after_start_sandbox")
        return sandbox


class MortalWorkspace(Workspace):
    """One workspace. Made by `MortalWorkspaces` alone."""

    @property
    def _points(self) -> KillPoints:
        assert isinstance(self._live, MortalWorkspaces)
        return self._live.points

    async def execute(
        self,
        command: str,
        *,
        timeout: float,
        output_bytes: int,
        on_output: Output | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Executed:
        self._points.reach("before_command")
        done = await super().execute(
            command,
            timeout=timeout,
            output_bytes=output_bytes,
            on_output=self._told(on_output),
            environment=environment,
        )
        self._points.reach("after_command")
        return done

    async def run_code(
        self, code: str, *, timeout: float, output_bytes: int, on_output: Output | None = None
    ) -> CellResult:
        self._points.reach("before_command")
        done = await super().run_code(code, timeout=timeout, output_bytes=output_bytes, on_output=self._told(on_output))
        self._points.reach("after_command")
        return done

    async def write(self, path: str, pieces: AsyncIterator[bytes], *, bytes_max: int | None = None) -> None:
        self._points.reach("before_write")
        await super().write(path, pieces, bytes_max=bytes_max)
        self._points.reach("after_write")

    async def kept(self, commit: Commit) -> None:
        self._points.reach("before_kept")
        await super().kept(commit)
        self._points.reach("after_kept")

    async def discard(self, *, if_clean: bool = False) -> bool:
        self._points.reach("before_discard")
        done = await super().discard(if_clean=if_clean)
        self._points.reach("after_discard")
        return done

    async def _commit(self) -> Commit | None:
        made = await super()._commit()
        if made is not None:
            self._points.reach("after_snapshot")
        return made

    def _told(self, on_output: Output | None) -> Callable[[str, str], None]:
        def tell(stream: str, text: str) -> None:
            self._points.reach("mid_command")
            if on_output is not None:
                on_output(stream, text)

        return tell


def _strike(data: Path, victim: str) -> None:
    count = strike(data, victim)
    sys.stderr.write(f"{STRUCK} {victim} {count}\n")
