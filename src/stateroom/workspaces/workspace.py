"""The seam to sandboxes: where the processes of a workspace live, and what keeps them in.

A driver starts one long-lived sandbox for a workspace. Its files are a directory of this machine that is `/workspace`
inside (and `/mnt/data`); everything else that happens inside goes through the agent, one program that runs there and
is spoken to over the sandbox's channel. What a driver isolates it says itself, and `probe` proves it by really starting
a sandbox and trying to break out.
"""

from __future__ import annotations

import asyncio
from typing import Literal, Protocol

import msgspec

WORKSPACE = "/workspace"
"""Where the files of a workspace are inside its sandbox."""


class Mount(msgspec.Struct, frozen=True):
    """Something of this machine that can be read inside."""

    source: str
    target: str


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a sandbox is to be."""

    id: str
    """Of the workspace. At most one sandbox lives for each."""
    files: str
    """Directory of this machine that is `/workspace` inside."""
    memory_bytes: int
    processes: int
    disk_bytes: int
    """Of `files`; beyond it writing is stopped."""
    disk_files: int = 100_000
    """How many of them; likewise."""
    mounts: tuple[Mount, ...] = ()
    """Read-only."""
    environment: dict[str, str] = {}
    egress: str = ""
    """Path of the Unix socket on which the egress proxy listens for this workspace; empty: no network at all."""


class Caps(msgspec.Struct, frozen=True):
    """What a driver can promise."""

    isolation: Literal["namespaces", "landlock", "container", "none"]
    hides_processes: bool
    """Whether other processes of this machine cannot be seen."""
    memory: Literal["cgroup", "watched", "rlimit", "none"]
    """Who bounds the memory of all processes together: the kernel; the driver, by looking every so often; nobody, only
    each of them is bounded; nobody."""
    egress: bool
    """Whether a sandbox can be given the egress proxy and nothing else."""
    own_paths: bool = True
    """Whether the files are at `/workspace` inside, and mounts at their targets. Where not, the agent puts their paths
    in place of names that stand alone (a working directory, a word of a command, a variable), and `$WORKSPACE` has that
    of the files; nothing inside a command's text is changed."""


class Promise(msgspec.Struct, frozen=True):
    """One thing that a probe has tried."""

    name: str
    held: bool
    detail: str = ""


class Report(msgspec.Struct, frozen=True):
    """What came of a probe."""

    driver: str
    usable: bool
    reason: str = ""
    """Why it is not, and what to do about it."""
    promises: tuple[Promise, ...] = ()


class Sandbox(Protocol):
    """A sandbox that was started. It dies with the server's process, whatever kills that."""

    @property
    def spec(self) -> SandboxSpec: ...

    @property
    def reader(self) -> asyncio.StreamReader:
        """What the agent inside says."""
        ...

    @property
    def writer(self) -> asyncio.StreamWriter:
        """What it is told."""
        ...

    @property
    def is_alive(self) -> bool: ...

    @property
    def owner(self) -> tuple[int, int] | None:
        """User and group that its files belong to; the server gives them what it writes there. None: its own."""
        ...

    def touch(self) -> None:
        """Something is about to be asked of it: what holds its bounds is to look at it now."""
        ...

    def breach(self) -> str:
        """The limit for which its processes were ended since this was last asked, in words; empty: none were."""
        ...

    async def freeze(self) -> None:
        """Let nothing inside run, so that its files stand still."""
        ...

    async def thaw(self) -> None: ...

    async def stop(self) -> None:
        """End every process of it, and wait until none is left. Its files stay."""
        ...


class Driver(Protocol):
    """A way to keep processes in."""

    @property
    def name(self) -> str: ...

    @property
    def caps(self) -> Caps: ...

    async def probe(self) -> Report:
        """Start a sandbox and hold each promise against it. Raises nothing: what fails is in the report."""
        ...

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Raises SandboxFailed."""
        ...

    async def sweep(self) -> int:
        """End whatever sandboxes an earlier process of this installation left behind; how many."""
        ...
