"""Containers in OpenAI's shapes, and what goes beyond them: what requests say, and how things are shown. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.wire.decoding import decode
from stateroom.wire.sse import escape_line_breaks

MemoryLimit = Literal["1g", "4g", "16g", "64g"]
MEMORY_LIMITS: Final = get_args(MemoryLimit)
GIB: Final = 1024 * 1024 * 1024

NAME_MAX: Final = 256
MINUTES_MAX: Final = 525_600
"""The longest that processes may be kept for nobody: a year."""
FILES_MAX: Final = 50
SKILLS_MAX: Final = 200
DOMAINS_MAX: Final = 200
SECRETS_MAX: Final = 50
SECRET_CHARACTERS: Final = 8192
DOMAIN_MAX: Final = 260
"""Characters, with a port."""
COMMAND_MAX: Final = 100_000
"""Characters of a command."""
MOUNT: Final = "/mnt/data/"
"""Where clients see the files of a container."""


FileIds: TypeAlias = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=256)]], msgspec.Meta(max_length=FILES_MAX)
]


class IdleExpiry(msgspec.Struct, frozen=True):
    """How long processes stay when nobody asks for them."""

    anchor: Literal["last_active_at"]
    minutes: Annotated[int, msgspec.Meta(ge=1, le=MINUTES_MAX)]


class DomainSecret(msgspec.Struct, frozen=True):
    """What is put in the place of a placeholder, outside, in requests to one domain."""

    domain: Annotated[str, msgspec.Meta(min_length=1, max_length=DOMAIN_MAX)]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    value: Annotated[str, msgspec.Meta(min_length=1, max_length=SECRET_CHARACTERS)]


class NoNetwork(msgspec.Struct, frozen=True, tag_field="type", tag="disabled"):
    pass


class Allowlist(msgspec.Struct, frozen=True, tag_field="type", tag="allowlist"):
    allowed_domains: Annotated[
        list[Annotated[str, msgspec.Meta(min_length=1, max_length=DOMAIN_MAX)]],
        msgspec.Meta(min_length=1, max_length=DOMAINS_MAX),
    ]
    domain_secrets: Annotated[list[DomainSecret], msgspec.Meta(max_length=SECRETS_MAX)] | None = None


NetworkPolicy: TypeAlias = NoNetwork | Allowlist


class NewContainer(msgspec.Struct, frozen=True):
    """A request for a container."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_MAX)]
    expires_after: IdleExpiry | None = None
    file_ids: FileIds | None = None
    memory_limit: MemoryLimit | None = None
    network_policy: NetworkPolicy | None = None
    skills: Annotated[list[dict[str, Any]], msgspec.Meta(max_length=SKILLS_MAX)] | None = None


class DeclaredContainer(msgspec.Struct, frozen=True):
    """What a tool says of the container that is to be made for it."""

    file_ids: FileIds | None = None
    memory_limit: MemoryLimit | None = None
    network_policy: NetworkPolicy | None = None
    skills: Annotated[list[dict[str, Any]], msgspec.Meta(max_length=SKILLS_MAX)] | None = None


class CopiedFile(msgspec.Struct, frozen=True):
    """A request to copy a file into a container."""

    file_id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Restore(msgspec.Struct, frozen=True):
    commit: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Fork(msgspec.Struct, frozen=True):
    commit: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_MAX)] | None = None


class Exec(msgspec.Struct, frozen=True):
    """A command to be carried out in a container."""

    command: Annotated[str, msgspec.Meta(min_length=1, max_length=COMMAND_MAX)]
    timeout_ms: Annotated[int, msgspec.Meta(ge=1)] | None = None


_NEW: Final = msgspec.json.Decoder(NewContainer)
_COPIED: Final = msgspec.json.Decoder(CopiedFile)
_RESTORE: Final = msgspec.json.Decoder(Restore)
_FORK: Final = msgspec.json.Decoder(Fork)
_EXEC: Final = msgspec.json.Decoder(Exec)
_DEPTH: Final = 16


def decode_new_container(body: bytes) -> NewContainer:
    """Raises InvalidRequest."""
    return decode(_NEW, body, _DEPTH)


def decode_copied_file(body: bytes) -> CopiedFile:
    return decode(_COPIED, body, _DEPTH)


def decode_restore(body: bytes) -> Restore:
    return decode(_RESTORE, body, _DEPTH)


def decode_container_fork(body: bytes) -> Fork:
    return decode(_FORK, body or b"{}", _DEPTH)


def decode_exec(body: bytes) -> Exec:
    asked = decode(_EXEC, body, _DEPTH)
    if "\0" in asked.command:
        raise InvalidRequest("'command' has a NUL character.", code="invalid_value", param="command")
    return asked


def memory_bytes_of(limit: str) -> int:
    """What `1g` and the others are."""
    return int(limit.removesuffix("g")) * GIB


def container_object(
    *,
    id: str,
    name: str,
    created_at: int,
    active_at: int,
    minutes: int,
    memory_limit: str,
    domains: Sequence[str] | None,
    interpreter: tuple[str, Mapping[str, str]],
    jobs: tuple[Sequence[str], Sequence[str]],
) -> dict[str, Any]:
    """A container; times are in milliseconds. `domains` None: it has no network. `jobs`: that run, that ended."""
    network: dict[str, Any] = {"type": "disabled"}
    if domains is not None:
        network = {"type": "allowlist", "allowed_domains": list(domains)}
    return {
        "id": id,
        "object": "container",
        "created_at": created_at // 1000,
        "status": "running",
        "expires_after": {"anchor": "last_active_at", "minutes": minutes},
        "last_active_at": active_at // 1000,
        "memory_limit": memory_limit or None,
        "name": name,
        "network_policy": network,
        "interpreter": {"state": interpreter[0], "lost": dict(interpreter[1])},
        "jobs": [
            {"command": command, "status": status}
            for status, commands in zip(("running", "ended"), jobs, strict=True)
            for command in commands
        ],
    }


def deleted_container(container_id: str) -> dict[str, Any]:
    return {"id": container_id, "object": "container.deleted", "deleted": True}


def container_file_id(container_id: str, path: str) -> str:
    """The id of a file, derived from where it is: the same path in the same container has the same id."""
    said = f"{container_id}\0{path}".encode("utf-8", "surrogateescape")
    return f"cfile_{hashlib.blake2b(said, digest_size=16).hexdigest()}"


def shown_path(path: str) -> str:
    """The path that clients see of one within the workspace. Bytes that are no UTF-8 are replaced."""
    return MOUNT + path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def container_file_object(*, container_id: str, path: str, bytes: int, created_at: int, source: str) -> dict[str, Any]:
    """A file of a container; `path` within its workspace, the time in seconds."""
    return {
        "id": container_file_id(container_id, path),
        "object": "container.file",
        "created_at": max(0, created_at),
        "bytes": bytes,
        "container_id": container_id,
        "path": shown_path(path),
        "source": source,
    }


def deleted_container_file(file_id: str) -> dict[str, Any]:
    return {"id": file_id, "object": "container.file.deleted", "deleted": True}


def commit_object(
    *,
    id: str,
    container_id: str,
    created_at: int,
    parent: str,
    response: str,
    reason: str,
    files: int,
    bytes: int,
    new_bytes: int,
    left_out: int,
    interpreter: str,
    lost: Mapping[str, str],
    jobs: Sequence[str],
) -> dict[str, Any]:
    """A commit; the time is in milliseconds."""
    return {
        "id": id,
        "object": "container.commit",
        "container_id": container_id,
        "created_at": created_at // 1000,
        "parent_id": parent or None,
        "response_id": response or None,
        "reason": reason,
        "files": files,
        "bytes": bytes,
        "new_bytes": new_bytes,
        "left_out": left_out,
        "interpreter": {"variables": interpreter, "lost": dict(lost)},
        "jobs": list(jobs),
    }


def diff_object(
    *, container_id: str, commit: str, base: str, changes: list[dict[str, Any]], truncated: bool
) -> dict[str, Any]:
    """What differs between two commits."""
    return {
        "object": "container.diff",
        "container_id": container_id,
        "from": base or None,
        "to": commit,
        "changes": changes,
        "truncated": truncated,
    }


def decision_object(
    *,
    id: str,
    container_id: str,
    domain: str,
    port: int,
    verdict: str,
    reason: str,
    count: int,
    first_at: int,
    last_at: int,
) -> dict[str, Any]:
    """Whether a container could reach something; times are in milliseconds. Without a domain it was not to be read."""
    is_known = domain != "-"
    return {
        "id": id,
        "object": "container.egress_decision",
        "container_id": container_id,
        "domain": domain if is_known else None,
        "port": port if is_known else None,
        "verdict": verdict,
        "reason": reason,
        "count": count,
        "first_at": first_at // 1000,
        "last_at": last_at // 1000,
    }


def encode_event(event: Mapping[str, Any]) -> bytes:
    """An event of a stream as it goes out."""
    data = msgspec.json.encode(event)
    return escape_line_breaks(b"event: %b\ndata: %b\n\n" % (str(event["type"]).encode(), data))


def exec_output_event(stream: str, text: str) -> dict[str, Any]:
    return {"type": "container.exec.output", "stream": stream, "text": text}


def exec_done_event(
    *,
    exit_code: int | None,
    timed_out: bool,
    truncated: bool,
    background: Sequence[str],
    restarted: bool,
    breach: str,
    commit_id: str,
) -> dict[str, Any]:
    return {
        "type": "container.exec.done",
        "exit_code": exit_code,
        "timed_out": timed_out,
        "truncated": truncated,
        "background": list(background),
        "restarted": restarted,
        "breach": breach or None,
        "commit_id": commit_id or None,
    }


def exec_failed_event(error: Mapping[str, Any]) -> dict[str, Any]:
    return {**error, "type": "error"}
