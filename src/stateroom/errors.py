"""Every error that may reach a caller, with the HTTP status and the stable code it is answered with.

StateroomError
├── RequestError            the caller's fault: nothing was done, the message says what to change
│   ├── InvalidRequest      400  a parameter is wrong (`param` names it)
│   ├── Unauthorized        401
│   ├── Forbidden           403
│   ├── NotFound            404  missing, deleted or somebody else's: the three look the same
│   ├── MethodNotAllowed    405
│   ├── TooLarge            413
│   └── TooMany             429  a documented limit is reached; `retry_after` seconds
├── BackendError            the model server's fault
│   ├── BackendRejected     4xx  it refused the request: its own message is passed on
│   ├── BackendBusy         429  it asked us to slow down
│   ├── BackendUnavailable  503  it cannot be reached or is still loading
│   ├── BackendTimeout      504  it went silent
│   └── BackendFailed       502  it broke off or answered nonsense
├── WorkspaceError          the sandbox's fault
│   ├── NoSandbox           503  nothing on this machine isolates, or it is switched off: hosted tools are refused
│   └── SandboxFailed       503  it could not be started, or died
└── StorageError            the disk's or the data's fault
    ├── StorageFull         503  no room left: nothing of this request was kept
    ├── JournalDamaged      500  the file fails its checks; refuse to run on it
    ├── JournalNewer        500  written by a newer version
    ├── DirectoryInUse      500  another server owns the data directory
    ├── HeadMoved           409  someone else appended first (handled inside, never sent)
    └── Fenced              503  this writer lost its lease and may write nothing more
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Final, TypeVar

E = TypeVar("E", bound=BaseException)


class StateroomError(Exception):
    """Base of all. `code` is stable and documented; `message` says what happened and what to do next."""

    status: int = 500
    type: ClassVar[str] = "server_error"
    code: str = "server_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def body(self) -> dict[str, Any]:
        """OpenAI's error shape: `{"error": {message, type, param, code}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Headers that tell a client whether and when to try again."""
        return {}


class Translated:
    """Lets no error of another library's kind out of its block. A class and no generator: hot paths pass through it."""

    __slots__ = ("_kind", "_translate")

    def __init__(self, kind: type[E], translate: Callable[[E], StateroomError]) -> None:
        self._kind = kind
        self._translate: Callable[[Any], StateroomError] = translate

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, self._kind):
            raise self._translate(error) from error


class RequestError(StateroomError):
    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class InvalidRequest(RequestError):
    pass


class Unauthorized(RequestError):
    status = 401
    code = "invalid_api_key"

    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class Forbidden(RequestError):
    status = 403
    code = "forbidden"


class NotFound(RequestError):
    status = 404
    code = "not_found"


class MethodNotAllowed(RequestError):
    status = 405
    code = "method_not_allowed"


class TooLarge(RequestError):
    status = 413
    code = "request_too_large"


class TooMany(RequestError):
    status = 429
    type = "rate_limit_error"
    code = "too_many_runs"

    def __init__(
        self, message: str, *, retry_after: float = 1.0, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message, code=code, param=param)
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        return {"retry-after": str(max(1, round(self.retry_after)))}


class BackendError(StateroomError):
    status = 502
    type = "server_error"
    code = "backend_error"


class BackendRejected(BackendError):
    """The model server refused the request (4xx); status, code and message are its own."""

    type = "invalid_request_error"
    code = "backend_rejected"

    def __init__(self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message, code=code, param=param)
        self.status = status


class BackendBusy(BackendError):
    status = 429
    type = "rate_limit_error"
    code = "backend_busy"

    def __init__(self, message: str, *, retry_after: float = 1.0, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after

    def headers(self) -> dict[str, str]:
        return {"retry-after": str(max(1, round(self.retry_after)))}


class ServerStopping(StateroomError):
    """Whoever asks again when the server is up is answered."""

    status = 503
    code = "server_stopping"

    def __init__(self, message: str = "This server is stopping. Retry when it is up again.") -> None:
        super().__init__(message)


class BackendUnavailable(BackendError):
    status = 503
    code = "backend_unavailable"

    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "true"}


class BackendTimeout(BackendError):
    status = 504
    code = "backend_timeout"


class BackendFailed(BackendError):
    status = 502
    code = "backend_failed"


class WorkspaceError(StateroomError):
    status = 503
    code = "sandbox_failed"


class NoSandbox(WorkspaceError):
    code = "no_sandbox"


class SandboxFailed(WorkspaceError):
    pass


class SandboxDied(SandboxFailed):
    """In the middle of something: nobody can say how much of it took place."""

    code = "sandbox_died"

    def __init__(self, reason: str) -> None:
        super().__init__(
            "The outcome of this call is unknown: its sandbox came to an end while it was being carried out "
            f"({reason}), and it may or may not have taken effect. It was not repeated. Check before calling it again."
        )


class StorageError(StateroomError):
    code = "storage_error"


NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What systems say when there is no room for a file: StorageFull."""


class StorageFull(StorageError):
    status = 503
    code = "storage_full"

    def __init__(self, message: str = "") -> None:
        super().__init__(
            message or "The disk with the data directory is full: nothing of this was kept. Make room, then try again."
        )

    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "false"}


class JournalDamaged(StorageError):
    code = "journal_damaged"


class JournalNewer(StorageError):
    code = "journal_newer"


class DirectoryInUse(StorageError):
    code = "data_directory_in_use"


class HeadMoved(StorageError):
    status = 409
    code = "head_moved"


class Fenced(StorageError):
    status = 503
    code = "writer_fenced"
