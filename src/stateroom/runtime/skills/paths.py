"""Which paths the files of a skill may have: such as mean the same to everybody, and lie in the skill's folder.

Pure. A path is checked as it was sent; nothing is mended, because what is mended here may be read otherwise elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, Literal

from stateroom.runtime.skills.refusals import bad_path, duplicate_path

PATH_BYTES: Final = 1_024
NAME_BYTES: Final = 255
"""What file systems take for one name."""
DEPTH: Final = 32

_DRIVE: Final = re.compile(r"[A-Za-z]:")
_UNSEEN: Final = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JUNK: Final = (".DS_Store",)
_JUNK_FOLDER: Final = "__MACOSX"


def check_path(path: str) -> None:
    """Raises InvalidRequest."""
    if not path:
        raise bad_path(path, "it is empty")
    if "\\" in path:
        raise bad_path(path, "it has a backslash; folders are separated by slashes")
    if path.startswith("/"):
        raise bad_path(path, "it is absolute")
    if _DRIVE.match(path):
        raise bad_path(path, "it names a drive")
    if any(unicodedata.category(each) in _UNSEEN for each in path):
        raise bad_path(path, "it has characters that cannot be seen")
    if len(path.encode()) > PATH_BYTES:
        raise bad_path(path, f"it has more than {PATH_BYTES} bytes")
    names = path.split("/")
    if len(names) > DEPTH:
        raise bad_path(path, f"it lies in more than {DEPTH - 1} folders")
    for name in names:
        if name in ("", ".", ".."):
            raise bad_path(path, f"{name!r} is no name of a file or folder")
        if len(name.encode()) > NAME_BYTES:
            raise bad_path(path, f"it has a name of more than {NAME_BYTES} bytes")


def is_junk(path: str) -> bool:
    """What macOS adds to zips and folders: nobody means it to be there."""
    names = path.split("/")
    return names[0] == _JUNK_FOLDER or names[-1] in _JUNK


class Tree:
    """The paths so far. No two of them may be one and the same on any file system."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Literal["file", "folder", "implied"]]] = {}

    def add(self, path: str, *, folder: bool = False) -> None:
        """Raises InvalidRequest."""
        check_path(path)
        names = path.split("/")
        for depth in range(1, len(names)):
            above = "/".join(names[:depth])
            spelled, kind = self._known.setdefault(_folded(above), (above, "implied"))
            if spelled != above:
                raise duplicate_path(path, "differs from another in nothing but case or accents")
            if kind == "file":
                raise duplicate_path(above, "is both a file and a folder")
        if (known := self._known.get(_folded(path))) is not None:
            spelled, kind = known
            if spelled != path:
                raise duplicate_path(path, "differs from another in nothing but case or accents")
            if kind != "implied":
                raise duplicate_path(path, "is there twice")
            if not folder:
                raise duplicate_path(path, "is both a file and a folder")
        self._known[_folded(path)] = (path, "folder" if folder else "file")


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
