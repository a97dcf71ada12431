"""Which driver keeps the processes of this server's workspaces in, and the reason where none does.

`auto` is settled by starting a sandbox, not by looking at versions: the first driver that can is kept for as long as
the server runs. A driver that has worked is never left for a weaker one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from stateroom.errors import NoSandbox, SandboxFailed
from stateroom.settings import WorkspaceSettings
from stateroom.workspaces.layout import TRIALS
from stateroom.workspaces.workspace import Caps, Driver, Report, Sandbox, SandboxSpec

log = logging.getLogger("stateroom.workspaces")

SWITCHED_OFF: Final = "This server carries out no hosted tools (`workspaces.driver`)."
_BELIEVED_SECONDS: Final = 60.0
"""Then it is tried again: an engine may have been started, or a setting of the machine mended."""
_TRIAL_MEMORY_BYTES: Final = 128 * 1024 * 1024
_TRIAL_PROCESSES: Final = 16


class Chosen:
    """A driver that becomes the first of several that can start a sandbox, when the first is asked for."""

    def __init__(self, candidates: Sequence[Driver], data: Path | str, *, last_resort: Driver | None = None) -> None:
        """`data`: the server's data directory. `last_resort`: what is used where none of them can."""
        self._candidates = tuple(candidates)
        self._trials = Path(data).absolute() / TRIALS
        self._last_resort = last_resort
        self._driver: Driver | None = None
        self._reason = ""
        self._failed_at = 0.0
        self._choosing = asyncio.Lock()

    @property
    def name(self) -> str:
        """Of the one that was chosen; before that, of the one that is tried first."""
        return (self._driver or self._candidates[0]).name

    @property
    def caps(self) -> Caps:
        return (self._driver or self._candidates[0]).caps

    @property
    def why_not(self) -> str:
        """Why none could a moment ago; empty: one can, or nobody has asked lately."""
        return self._reason if self._reason and time.monotonic() - self._failed_at < _BELIEVED_SECONDS else ""

    async def probe(self) -> Report:
        try:
            driver = await self.settled()
        except NoSandbox as error:
            return Report("auto", usable=False, reason=error.message)
        return await driver.probe()

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Raises SandboxFailed, NoSandbox."""
        return await (await self.settled()).start(spec)

    async def sweep(self) -> int:
        await asyncio.to_thread(shutil.rmtree, self._trials, ignore_errors=True)
        ended = 0
        for driver in (*self._candidates, *((self._last_resort,) if self._last_resort else ())):
            ended += await driver.sweep()
        return ended

    async def settled(self) -> Driver:
        """The one that can. Raises NoSandbox with the reason of each."""
        async with self._choosing:
            if self._driver is None and not self.why_not:
                self._driver = await self._choose()
            if self._driver is None:
                raise NoSandbox(self._reason)
            return self._driver

    async def _choose(self) -> Driver | None:
        reasons: list[str] = []
        for driver in self._candidates:
            # A trial that somebody killed says nothing of the driver: it is given a second one.
            why_not = await self._tried(driver) and await self._tried(driver)
            if not why_not:
                if reasons:
                    log.warning("workspaces.fallback driver=%s because %s", driver.name, "; ".join(reasons))
                return driver
            reasons.append(f"{driver.name}: {why_not.rstrip('.')}")
        if self._last_resort is not None:
            log.warning("workspaces.unsafe nothing is kept in, because %s", "; ".join(reasons))
            return self._last_resort
        said = "; ".join(reasons)
        self._reason = f"Nothing here keeps the processes of hosted tools in ({said}). See `stateroom doctor`."
        self._failed_at = time.monotonic()
        return None

    async def _tried(self, driver: Driver) -> str:
        """Why a driver cannot start a sandbox; empty: it can. Tried where workspaces are, so that it says of them."""
        try:
            with _trial(self._trials) as spec:
                await (await driver.start(spec)).stop()
        except (NoSandbox, SandboxFailed) as error:
            return error.message
        except OSError as error:
            return f"no sandbox could be tried in {self._trials}: {error}"
        return ""


@contextlib.contextmanager
def _trial(trials: Path) -> Iterator[SandboxSpec]:
    """Raises OSError."""
    trials.mkdir(mode=0o711, parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=trials) as folder:
            files = Path(folder) / "files"
            files.mkdir()
            # A sandbox may run as another user, who has to pass through it.
            os.chmod(folder, 0o711)  # noqa: PTH101, S103  # to pass, not to list
            yield SandboxSpec(
                id=f"trial-{Path(folder).name}",
                files=str(files),
                memory_bytes=_TRIAL_MEMORY_BYTES,
                processes=_TRIAL_PROCESSES,
                disk_bytes=_TRIAL_MEMORY_BYTES,
            )
    finally:
        with contextlib.suppress(OSError):  # somebody else tries something there
            trials.rmdir()


def choose_driver(settings: WorkspaceSettings, data: Path | str) -> tuple[Driver | None, str]:
    """What is to keep processes in, or None and why nothing does. It starts nothing."""
    wanted = settings.driver
    if wanted == "none":
        return None, SWITCHED_OFF
    named = ("bubblewrap", "landlock") if wanted == "auto" else (wanted,)
    last_resort = None
    if settings.unsafe and wanted not in ("docker", "podman"):  # an engine that is down is no reason for none
        from stateroom.workspaces.drivers.unsafe import UnsafeDriver  # lazy: only where an operator insists

        last_resort = UnsafeDriver(data, python=settings.python)
    return Chosen([make_driver(name, settings, data) for name in named], data, last_resort=last_resort), ""


def make_driver(name: str, settings: WorkspaceSettings, data: Path | str) -> Driver:
    """A driver by its name in the settings; whether it works is found out when it starts something."""
    # Lazy, all of them: a server has use for one.
    if name in ("docker", "podman"):
        from stateroom.workspaces.drivers.oci import OciDriver  # lazy: as above

        engine: Final = "docker" if name == "docker" else "podman"
        return OciDriver(data, engine=engine, image=settings.image, python=settings.python)
    if name == "landlock":
        from stateroom.workspaces.drivers.landlock import LandlockDriver  # lazy: as above

        return LandlockDriver(data, python=settings.python)
    from stateroom.workspaces.drivers.bubblewrap import BubblewrapDriver  # lazy: as above

    return BubblewrapDriver(data, python=settings.python)
