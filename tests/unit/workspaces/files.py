"""Random files and random changes to them, for the tests of what is kept of them."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import TypeAlias

from hypothesis import strategies as st

from stateroom.workspaces.files.folder import Folder

EXAMPLES = int(os.environ.get("EXAMPLES", "40"))

NAMES = ["a", "b", "c", "é", "with space", "\udcff", "x.txt", "-", "\n"]
CONTENTS = [b"", b"x", b"text\n" * 100, bytes(1024 * 1024 + 1), b"ab" * 700_000, os.urandom(3000)]

Changes: TypeAlias = list[tuple[str, tuple[str, ...], int, int]]
"""What is done, where, with which content or mode, and at what time."""

changes: st.SearchStrategy[Changes] = st.lists(
    st.tuples(
        st.sampled_from(["file", "file", "directory", "link", "delete", "mode", "append", "touch", "rename"]),
        st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple),
        st.integers(0, 511),
        st.integers(-(10**9), 10**18),
    ),
    max_size=12,
)


def make_folder(path: Path) -> Folder:
    path.mkdir()
    return Folder(path)


def apply(root: Path, steps: Changes) -> None:
    """Change files at random; what cannot be done is not done."""
    for what, names, number, at in steps:
        path = root.joinpath(*names)
        try:
            _change(root, path, what, number, at)
        except (OSError, shutil.Error):
            continue


def _change(root: Path, path: Path, what: str, number: int, at: int) -> None:
    if any(above.is_symlink() for above in path.parents if above.is_relative_to(root)):
        return
    match what:
        case "file":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(CONTENTS[number % len(CONTENTS)]) if not path.is_symlink() else None
        case "directory":
            path.mkdir(parents=True)
        case "link":
            path.symlink_to(["a", "../x", "/etc/passwd", "."][number % 4])
        case "delete" if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        case "delete":
            path.unlink()
        case "mode" if not path.is_symlink():
            path.chmod(number | (0o700 if os.geteuid() else 0))
        case "append" if path.is_file() and not path.is_symlink():
            with path.open("ab") as file:
                file.write(b"more")
        case "touch" if not path.is_symlink():
            os.utime(path, ns=(at, at))
        case "rename":
            path.rename(root / NAMES[number % len(NAMES)])


def look(root: Path, *, times: bool = True) -> dict[str, object]:
    """All that is to be kept of the files, by their paths."""
    found: dict[str, object] = {}
    for path in root.rglob("*"):
        status = path.lstat()
        if path.is_symlink():
            told: object = ("link", str(path.readlink()))
        elif path.is_dir():
            told = ("directory", stat.S_IMODE(status.st_mode))
        else:
            kept = (path.read_bytes(), stat.S_IMODE(status.st_mode))
            told = (*kept, status.st_mtime_ns) if times else kept
        found[str(path.relative_to(root))] = told
    return found
