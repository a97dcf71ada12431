"""What the blobs on disk ask of the operating system: private files, durable names, errors of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from stateroom.errors import NO_ROOM, StorageError, StorageFull, Translated


def open_private(path: str, flags: int) -> int:
    """An opener of files that only their owner may read."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def sync_folder(folder: Path) -> None:
    """Make a rename durable: it is the folder that remembers names."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_in_place(aside: Path, path: Path, root: Path, *, full: bool) -> None:
    """Rename a file that is written into its folder under `root`, which is made when it is missing."""
    if not path.parent.is_dir():
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if full:
            sync_folder(root)
    aside.replace(path)
    if full:
        sync_folder(path.parent)


def _translate(error: OSError) -> StorageError:
    if error.errno in NO_ROOM:
        return StorageFull()
    return StorageError(
        f"A blob could not be read or written ({error.strerror}). See the disk's state and permissions."
    )


TRANSLATED: Final = Translated(OSError, _translate)
"""Lets no error of the operating system out of its block."""
