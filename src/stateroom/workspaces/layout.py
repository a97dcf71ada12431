"""Where our own programs are, on this machine and inside a sandbox. Everything is bound read-only."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from stateroom.workspaces.workspace import Mount

CONTENT = "workspaces/content.db"
"""In the data directory: the content store."""
LIVE = "workspaces/live"
"""The same: the files of workspaces at hand, each in a directory of its own."""
EGRESS = "workspaces/egress"
"""The same: the authority of the egress proxy."""
TRIALS = "workspaces/trials"
"""The same: the files of sandboxes that are started only to see whether a driver can."""
INSIDE = "/run/stateroom"
"""Our programs, inside: `agent.py`, and the interpreter with what belongs to it."""
CLOUDPICKLE = f"{INSIDE}/cloudpickle"
"""The files of cloudpickle, inside. Not on anybody's path: a workspace may have a version of its own."""


def inside_directory() -> Path:
    """Our programs on this machine; standard library only."""
    return Path(__file__).resolve().parent / "inside"


def cloudpickle_directory() -> Path:
    """The files of cloudpickle on this machine. It is not imported: the server has no use for it."""
    spec = importlib.util.find_spec("cloudpickle")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("cloudpickle is not installed")
    return Path(spec.origin).resolve().parent


def kernel_files() -> tuple[Mount, ...]:
    """What the interpreter needs inside, besides a Python."""
    programs = [Mount(str(inside_directory() / name), f"{INSIDE}/{name}") for name in ("interpreter.py", "kernel")]
    return (*programs, Mount(str(cloudpickle_directory()), CLOUDPICKLE))
