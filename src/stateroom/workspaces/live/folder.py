"""The directory of a live workspace: at which commit it stands, and getting it there.

    ROOT/ID/files        the files, `/workspace` inside
    ROOT/ID/state.json   at which commit they stand; missing while they are being put there

What stands at a commit, or went on from it before a crash, is used as it is. What the machine lost its power over is
not: files may be half on the disk then, so that they are made anew from the commit. Everything here blocks.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from stateroom.errors import NO_ROOM, NotFound, StorageError, StorageFull
from stateroom.workspaces.files.folder import Folder

FILES: Final = "files"
_STATE: Final = "state.json"
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_ASIDE: Final = ".gone"


class Standing(msgspec.Struct, frozen=True, omit_defaults=True):
    """What state.json says."""

    project: str
    boot: str
    commit: str = ""
    """The commit that the files were put there from, or were last kept as; '': there was none."""
    following: str = ""
    """One that was written to the content store from them; it may be known to the journal, or not."""
    clean: bool = False
    """Whether they are that commit's, with nothing that came after."""
    left: tuple[str, ...] = ()
    """Commands that left processes running, as `Jobs.left`."""

    def stands_at(self, commit_id: str) -> bool:
        """Whether the files are those of a commit, or have gone on from it."""
        return commit_id in (self.commit, self.following or self.commit)

    def holds_only(self, commit_id: str) -> bool:
        """Whether they are those of a commit, and nothing came after."""
        return self.clean and self.commit == commit_id


_DECODE: Final = msgspec.json.Decoder(Standing).decode


class LiveFolder:
    """One of them."""

    def __init__(self, root: Path, workspace_id: str, project: str) -> None:
        self._root = root
        self._id = workspace_id
        self._project = project
        self.path = root / workspace_id
        self.files = self.path / FILES

    def standing(self) -> Standing | None:
        """What is there; None when it is nothing that can be gone on with."""
        said = self.read()
        if said is None or said.boot != boot_id() or said.project != self._project or not self.files.is_dir():
            return None
        return said

    def read(self) -> Standing | None:
        """What state.json says, whatever that is worth."""
        try:
            return _DECODE((self.path / _STATE).read_bytes())
        except (OSError, msgspec.MsgspecError):
            return None

    @property
    def written_at(self) -> float:
        """When state.json was written; 0: it is not there."""
        try:
            return (self.path / _STATE).stat().st_mtime
        except OSError:
            return 0.0

    def stands_at(self, commit_id: str) -> bool:
        """Whether the files are those of a commit, or have gone on from it."""
        said = self.standing()
        return said is not None and said.stands_at(commit_id)

    def prepare(
        self, commit_id: str, put: Callable[[Folder], None], folder: Folder, left: tuple[str, ...] = ()
    ) -> bool:
        """Have the files of a commit there, which `put` puts into an empty folder; whether they were not before.

        `left`: what ran when that commit was made.
        """
        if self.stands_at(commit_id):
            return False
        with _told(self.path):
            self.remove()
            self.path.mkdir(mode=0o711, parents=True)
            self.files.mkdir(mode=0o700)
            if folder.owner is not None:
                os.chown(self.files, *folder.owner)
        put(folder)
        self.write(Standing(self._project, boot_id(), commit_id, left=left))
        return True

    def write(self, said: Standing) -> None:
        """Say at which commit the files stand."""
        aside = self.path / f"{_STATE}.new"
        with _told(self.path):
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(said))
            aside.replace(self.path / _STATE)

    def say(self, commit_id: str, *, following: str = "", clean: bool = False, left: tuple[str, ...] = ()) -> None:
        """The same in short."""
        self.write(Standing(self._project, boot_id(), commit_id, following, clean, left))

    def leave(self, left: tuple[str, ...]) -> None:
        """Say what is left running there; all else stays."""
        said = self.read()
        if said is not None and said.left != left:
            self.write(msgspec.structs.replace(said, left=left))

    def remove(self) -> None:
        """Remove the directory; from the first step on it is nothing that can be gone on with."""
        with suppress(FileNotFoundError):
            (self.path / _STATE).unlink()
        if not self.path.exists():
            return
        with suppress(StorageError, NotFound):  # what a crash leaves may have no files any more, or not yet
            Folder(self.files).clear()
        shutil.rmtree(self.path, ignore_errors=True)


def boot_id() -> str:
    """Another one after the machine was started anew; '' where nobody says."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""


class _Told:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            if error.errno in NO_ROOM:
                raise StorageFull() from error
            raise StorageError(f"{self._path} cannot be written: {error.strerror}.") from error


def _told(path: Path) -> _Told:
    """Has what the disk says said in our words."""
    return _Told(path)
