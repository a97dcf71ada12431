"""How a command fails: one line on standard error and an exit code, never a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stateroom.errors import DirectoryInUse, StateroomError

ERROR = 1
"""The command could not do what it was asked."""
USAGE = 2
"""An option, an argument or a setting is wrong."""
DIRECTORY_IN_USE = 3
"""Another server owns the data directory."""
INTERRUPTED = 130
"""Ctrl-C, as shells have it."""


class CommandFailed(Exception):
    """Ends the command. `message` says what happened; `remedy`, if any, what to do about it."""

    exit_code = ERROR

    def __init__(self, message: str, *, remedy: str = "", exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        if exit_code is not None:
            self.exit_code = exit_code


@contextmanager
def data_directory_failures() -> Iterator[None]:
    """Lets only CommandFailed out of a block that works on the data directory of a server that is stopped."""
    try:
        yield
    except DirectoryInUse as error:
        raise CommandFailed(error.message, remedy="Stop that server first.", exit_code=DIRECTORY_IN_USE) from None
    except StateroomError as error:
        raise CommandFailed(error.message) from None
    except OSError as error:
        raise CommandFailed(f"{error.filename or 'The disk'} cannot be used: {error.strerror}.") from None
