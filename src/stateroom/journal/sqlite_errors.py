"""What SQLite's errors mean to the journal's callers."""

from __future__ import annotations

from typing import Final

import apsw
import msgspec

from stateroom.errors import NO_ROOM, JournalDamaged, StateroomError, StorageError, StorageFull, Translated


def translate(error: Exception, *, system_errno: int = 0) -> StateroomError:
    """The error of ours for anything that went wrong below; `system_errno` is the connection's last one."""
    if isinstance(error, StateroomError):
        return error
    ours = StorageFull() if isinstance(error, apsw.IOError) and system_errno in NO_ROOM else _translate(error)
    ours.__cause__ = error
    return ours


def _translate(error: Exception) -> StateroomError:
    match error:
        case apsw.FullError():
            return StorageFull()
        case apsw.CorruptError() | apsw.NotADBError():
            return JournalDamaged(f"The journal's file is damaged ({error}). Stop, and restore it from a backup.")
        case apsw.BusyError() | apsw.LockedError():
            return StorageError("Another process holds the journal's file. End it, or try again.", code="journal_busy")
        case apsw.ConnectionClosedError():
            return StorageError("The journal is closed.", code="journal_closed")
        case apsw.Error():
            return StorageError(f"The journal's file could not be read or written ({error}). See the disk's state.")
        case msgspec.MsgspecError():
            return StorageError(f"An entry's body is not of its kind: {error}", code="malformed_append")
        case _:
            return StorageError(f"The journal could not do that: {type(error).__name__}: {error}")


TRANSLATED: Final = Translated(apsw.Error, translate)
"""Lets no error of SQLite out of its block."""
