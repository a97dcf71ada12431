"""What may be wrong with the content store, and what SQLite's errors mean to its callers."""

from __future__ import annotations

from typing import Final

import apsw

from stateroom.errors import StorageError, StorageFull, Translated


class ContentDamaged(StorageError):
    """What is on the disk is not what was written."""

    code = "content_damaged"


class ContentNewer(StorageError):
    """The file was written by a later version."""

    code = "content_newer"


class ContentMissing(StorageError):
    """A tree or a content that is asked for is not there."""

    code = "content_missing"


def _translate(error: apsw.Error) -> StorageError:
    match error:
        case apsw.FullError():
            return StorageFull()
        case apsw.CorruptError() | apsw.NotADBError():
            return ContentDamaged(f"The content store is damaged ({error}). Stop, and restore it from a backup.")
        case apsw.ConnectionClosedError():
            return StorageError("The content store is closed.", code="content_closed")
        case apsw.BusyError() | apsw.LockedError():
            return StorageError("Another process holds the content store. End it, or try again.", code="content_busy")
        case _:
            return StorageError(f"The content store could not be read or written ({error}). See the disk's state.")


TRANSLATED: Final = Translated(apsw.Error, _translate)
"""Lets no error of SQLite out of its block."""
