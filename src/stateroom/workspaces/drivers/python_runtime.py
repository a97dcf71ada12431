"""Which Python runs inside a sandbox, and what has to be shown there so that it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from stateroom.errors import NoSandbox
from stateroom.workspaces.workspace import Mount

INSIDE: Final = "/opt/python"
"""Where the server's own runtime is inside, if it is what runs there."""
SYSTEM: Final = "/usr/bin/python3"
_OLDEST: Final = (3, 8)
_ASK_SECONDS: Final = 10
_QUESTION: Final = (
    "import json, sys, sysconfig; print(json.dumps([list(sys.version_info[:2]), sys.prefix, sys.base_prefix,"
    " bool(sysconfig.get_config_var('Py_ENABLE_SHARED'))]))"
)


class Runtime(msgspec.Struct, frozen=True):
    """A Python for inside."""

    program: str
    """Its path inside."""
    mounts: tuple[Mount, ...] = ()
    first_in_path: str = ""
    """Directory that is to be first in PATH; empty: it is found there anyway."""


class _Answer(msgspec.Struct, frozen=True):
    version: tuple[int, int]
    prefix: str
    base_prefix: str
    is_shared: bool


def find_runtime(setting: str = "", *, system: str = SYSTEM) -> Runtime:
    """The one that is set, else the system's, else the one the server runs in. It starts each that it asks.

    Raises NoSandbox.
    """
    if setting:
        answer = _ask(setting)
        if answer is None:
            oldest = ".".join(map(str, _OLDEST))
            raise NoSandbox(f"`workspaces.python` names {setting}, which is no Python {oldest} or later")
        return _where_it_is(str(Path(setting).absolute()), answer)
    if _ask(system) is not None:
        return Runtime(system)
    own = _own_program()
    answer = _ask(own)
    if answer is None:
        raise NoSandbox("no Python was found that could run in a sandbox; `workspaces.python` can name one")
    return _moved(own, answer)


def _where_it_is(program: str, answer: _Answer) -> Runtime:
    """At its own path: a virtual environment names its parts by theirs."""
    prefixes = dict.fromkeys([answer.prefix, answer.base_prefix])
    mounts = tuple(Mount(os.path.realpath(prefix), prefix) for prefix in prefixes if not _is_shown(prefix))
    return Runtime(program, mounts, "" if _is_shown(program) else str(Path(program).parent))


def _moved(program: str, answer: _Answer) -> Runtime:
    prefix = os.path.realpath(answer.base_prefix)
    if _is_shown(prefix):
        return Runtime(program)
    inside = f"{INSIDE}/{Path(os.path.realpath(program)).relative_to(prefix)}"
    mounts = [Mount(prefix, INSIDE)]
    if answer.is_shared:  # its library is looked for where it was built
        mounts.append(Mount(prefix, answer.base_prefix))
    return Runtime(inside, tuple(mounts), f"{INSIDE}/bin")


def _own_program() -> str:
    for name in (f"python{sys.version_info[0]}.{sys.version_info[1]}", "python3"):
        program = Path(sys.base_prefix) / "bin" / name
        if program.exists():
            return str(program)
    return sys.executable


def _is_shown(path: str) -> bool:
    """Whether it lies in what every sandbox sees."""
    return Path(os.path.realpath(path)).is_relative_to("/usr")


def _ask(program: str) -> _Answer | None:
    try:
        done = subprocess.run(  # noqa: S603  # a program that the operator named, or the system's
            [program, "-I", "-c", _QUESTION],  # with its site: only that knows of a virtual environment
            capture_output=True,
            timeout=_ASK_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        answer = msgspec.convert(json.loads(done.stdout), tuple[tuple[int, int], str, str, bool])
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return _Answer(*answer) if answer[0] >= _OLDEST else None
