"""What is kept of a container: its state, and the notes about it. Nothing here reads or writes."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from stateroom.errors import InvalidRequest, NotFound
from stateroom.workspaces.egress.decisions import Decision

COLLECTION: Final = "container"

USER_FILES_MAX: Final = 512
"""Paths that are known to be of the client. The oldest are forgotten first, and shown as the assistant's."""
UNSTORED_SECONDS: Final = 24 * 3_600
"""How long a container is kept that was made for a response which is not stored, from its last commit."""

RUN: Final = "response"
CREATED: Final = "create"
UPLOAD: Final = "upload"
DELETION: Final = "delete"
EXEC: Final = "exec"
IDLE: Final = "idle"
RESTORED: Final = "restore"
FORKED: Final = "fork"
"""Why a commit was made."""


class SealedSecret(msgspec.Struct, frozen=True):
    """A secret for one domain, which only this installation can open, and for this project."""

    domain: str
    name: str
    placeholder: str
    """What stands for it inside."""
    sealed: str


class Network(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a container may reach."""

    domains: tuple[str, ...]
    secrets: tuple[SealedSecret, ...] = ()


class Head(msgspec.Struct, frozen=True, omit_defaults=True):
    """The commit at which a container stands."""

    id: str
    tree: str
    """Digest of its files in the content store."""
    interpreter: str = ""
    """Digest of the variables of its interpreter; '': there were none, or they could not be kept."""
    files: int = 0
    bytes: int = 0
    left: tuple[str, ...] = ()
    """Commands that had left processes running; where nobody was told of their end, ended ones, too."""
    lost: dict[str, str] = {}
    """Variables that could not be kept, by name, with their types."""


class Container(msgspec.Struct, frozen=True, omit_defaults=True):
    """State of the collection `container`."""

    name: str
    memory: str = ""
    """`memory_limit` as it was asked for; '': the server's own."""
    minutes: int = 0
    """How long processes stay when nobody asks for them; 0: the server's own."""
    network: Network | None = None
    """None: no network."""
    skills: tuple[dict[str, Any], ...] = ()
    """As `runtime.skills` describes them, without their content."""
    head: Head | None = None
    """None: nothing was ever put there."""
    copied: tuple[str, ...] = ()
    """Ids of the files that were copied in as it was declared."""
    user_files: dict[str, str] = {}
    """Paths that the client put there, with the beginning of their content's digest."""
    made_for: str = ""
    """The run that it was made for, when that asked for a container of its own."""
    chain: str = ""
    """The branch of that run; '' as well when that is not stored. When nothing of it is left, the container goes."""
    began: str = ""
    """Container and commit that it was forked from, with a slash in between."""


class CommitNote(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="commit"):
    """A commit of a container's files."""

    id: str
    tree: str
    at: int
    """Milliseconds since the epoch."""
    why: str
    interpreter: str = ""
    skipped: bool = False
    """There were variables, and they could not be kept: too large, or it took too long."""
    lost: dict[str, str] = {}
    """Variables that could not be kept, by name, with their types."""
    parent: str = ""
    response: str = ""
    """The run at whose end it was made."""
    files: int = 0
    bytes: int = 0
    new_bytes: int = 0
    left_out: int = 0
    """Files that are not in it: beyond the bounds of a workspace, or pipes, sockets and the like."""
    left: tuple[str, ...] = ()
    """As in `Head`."""


class ExecNote(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="exec"):
    """A command that a client had carried out; before it began, and again when it had ended."""

    id: str
    command: str
    at: int
    who: str = ""
    """Id of the access key."""
    ended: bool = False
    exit_code: int | None = None
    timed_out: bool = False


class EgressNote(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="kind", tag="egress"):
    """Where its processes wanted to go since the last one, and whether they could; oldest first."""

    decisions: tuple[Decision, ...]


Note = CommitNote | ExecNote | EgressNote
_NOTE: Final = msgspec.json.Decoder(Note)


def read_note(note: msgspec.Raw) -> Note:
    """What a note about a container says."""
    said: Note = _NOTE.decode(note)
    return said


def container_not_found(container_id: str, param: str = "container_id") -> NotFound:
    """Missing, deleted and foreign look the same."""
    message = f"Container with id '{container_id[:256]}' not found."
    return NotFound(message, code="container_not_found", param=param)


def commit_not_found(commit_id: str, param: str = "commit") -> NotFound:
    message = f"Commit with id '{commit_id[:256]}' not found in this container."
    return NotFound(message, code="commit_not_found", param=param)


def container_file_not_found(file_id: str) -> NotFound:
    message = f"Container file with id '{file_id[:256]}' not found."
    return NotFound(message, code="container_file_not_found", param="file_id")


def container_full(what: str, setting: str) -> InvalidRequest:
    """The files are more, or larger, than a workspace may hold."""
    return InvalidRequest(f"The container cannot hold {what} (`workspaces.{setting}`).", code="container_full")
