"""Puts a backup in the place of a data directory.

Until everything is there, the journal's file holds a sentence instead of a journal: no server starts on half of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from stateroom.blobs.files import sync_folder
from stateroom.errors import StorageError
from stateroom.journal.backup import blob_path, copy_file, make_empty, write_file
from stateroom.journal.layout import BLOBS, JOURNAL, MANIFEST
from stateroom.journal.lock import lock_directory
from stateroom.journal.verify import read_manifest, verify_data
from stateroom.journal.verify_blobs import list_blobs
from stateroom.journal.verify_entries import Progress
from stateroom.journal.verify_report import Report
from stateroom.workspaces.layout import CONTENT

_UNFINISHED: Final = b"A restore was cut off here. Empty this directory and restore again.\n"


def restore(backup: Path, data: Path, progress: Progress) -> Report:
    """Copy a backup to a data directory that is empty or not there, and verify it there. Raises StorageError, OSError.

    With findings nothing is left to start a server on.
    """
    try:
        manifest = read_manifest(backup)
    except FileNotFoundError:
        raise StorageError(f"{backup} is no backup, or one that was cut off: it has no {MANIFEST}.") from None
    names = sorted(set(manifest.files) - {JOURNAL})
    for name in (JOURNAL, *names):
        if (Path(name).name != name and name != CONTENT) or not (backup / name).is_file():
            raise StorageError(f"{backup} is not whole: {name!r} is missing. Use another backup.")
    make_empty(data)
    write_file(data / JOURNAL, _UNFINISHED)
    lock = lock_directory(data)
    try:
        _copy(backup, data, names, manifest.blobs, progress)
        report = verify_data(data, progress)
        if report.ok:
            (data / MANIFEST).unlink()
            sync_folder(data)
        else:
            write_file(data / JOURNAL, _UNFINISHED)
    finally:
        lock.release()
    return report


def _copy(backup: Path, data: Path, names: list[str], blobs: int, progress: Progress) -> None:
    (data / BLOBS).mkdir(mode=0o700)
    folders: set[Path] = set()
    for number, (digest, path) in enumerate(list_blobs(backup / BLOBS)):
        if number % 64 == 0:
            progress("blobs", number, blobs)
        to = blob_path(data, digest)
        to.parent.mkdir(mode=0o700, exist_ok=True)
        folders.add(to.parent)
        copy_file(path, to)
    for name in (*names, MANIFEST):
        if name == CONTENT:
            (data / name).parent.mkdir(mode=0o711)
            folders.add((data / name).parent)
        copy_file(backup / name, data / name)
    for folder in (*folders, data / BLOBS, data):
        sync_folder(folder)
    progress(JOURNAL, 0, 0)
    aside = data / f"{JOURNAL}.new"
    copy_file(backup / JOURNAL, aside)
    aside.replace(data / JOURNAL)
    sync_folder(data)
