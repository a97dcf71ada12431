"""Containers: their operations, and the shapes of their answers."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from stateroom.wire import containers
from stateroom.wire.containers import MemoryLimit
from stateroom.wire.openapi.operations import AFTER, LIMIT, ORDER, PAGE, Body, Operation, Parameter, Surface
from stateroom.wire.openapi.schemas import (
    Schema,
    Time,
    any_of,
    body_of,
    deleted,
    fields,
    list_of,
    nullable,
    one_of,
    page_of,
    ref,
    text,
    whole,
)

_FORM: Final = "multipart/form-data"
_BYTES: Final[Schema] = {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"}
_RANGE: Final = Parameter("Range", text(), "A range of bytes, such as `bytes=0-1023`.", "header")
_COMMIT: Final = Parameter("commit", text(), "As of this commit instead of the latest. An extension.")
_CONTAINER: Final = "GET /v1/containers/{container_id}"
_FILE: Final = "/v1/containers/{container_id}/files/{container_file_id}"


class ContainerExpiry(msgspec.Struct):
    """How long processes stay when nobody asks for them. Files and variables stay for longer."""

    anchor: Literal["last_active_at"]
    minutes: int


class ContainerNetwork(msgspec.Struct):
    """Secrets are never shown."""

    type: Literal["allowlist", "disabled"]
    allowed_domains: list[str] | msgspec.UnsetType = msgspec.UNSET


class ContainerInterpreter(msgspec.Struct):
    """What the next cell finds of the variables of those before; `lost` names what did not come back, with its type."""

    state: Literal["live", "restored", "partial", "fresh"]
    lost: dict[str, str]


class ContainerJob(msgspec.Struct):
    """A command that left processes running. Of those that ended with their environment the next call is told, once."""

    command: str
    status: Literal["running", "ended"]


class Container(msgspec.Struct):
    """Files, processes and an interpreter, apart from everything else."""

    id: str
    object: Literal["container"]
    created_at: Time
    status: Literal["running"]
    expires_after: ContainerExpiry
    last_active_at: Time
    memory_limit: MemoryLimit | None
    name: str
    network_policy: ContainerNetwork
    interpreter: ContainerInterpreter
    jobs: list[ContainerJob]


class ContainerFile(msgspec.Struct):
    id: str
    object: Literal["container.file"]
    created_at: Time
    bytes: int
    container_id: str
    path: str
    source: Literal["user", "assistant"]


class CommitInterpreter(msgspec.Struct):
    """What a commit has of the interpreter's variables."""

    variables: Literal["saved", "skipped", "none"]
    lost: dict[str, str]


class ContainerCommit(msgspec.Struct):
    """A container's files as they were at one moment."""

    id: str
    object: Literal["container.commit"]
    container_id: str
    created_at: Time
    parent_id: str | None
    response_id: str | None
    reason: Literal["response", "create", "upload", "delete", "exec", "idle", "restore"]
    files: int
    bytes: int
    new_bytes: int
    left_out: int
    interpreter: CommitInterpreter
    jobs: list[str]


class EgressDecision(msgspec.Struct):
    """Whether a container could reach something. The same again, until the next commit, is counted."""

    id: str
    object: Literal["container.egress_decision"]
    container_id: str
    domain: str | None
    port: int | None
    verdict: Literal["allowed", "refused", "failed"]
    reason: str
    count: int
    first_at: Time
    last_at: Time


def surface() -> Surface:
    """All of it."""
    return Surface(
        name="Containers",
        about="Workspaces with files, processes and an interpreter, which stay as they were between calls.",
        operations=(*_containers(), *_files(), *_history()),
        shapes=(Container, ContainerFile, ContainerCommit, EgressDecision),
        schemas={
            "CreateContainer": body_of(
                containers.NewContainer,
                about={
                    "expires_after": "How long processes stay when nobody asks for them.",
                    "file_ids": "Files to be copied in.",
                    "skills": "Skills by reference, or inline.",
                },
            ),
            "CreateContainerFile": fields({"file": _BYTES}, ("file",)),
            "CopyContainerFile": body_of(containers.CopiedFile),
            "RestoreContainer": body_of(containers.Restore),
            "ForkContainer": body_of(containers.Fork),
            "ContainerExec": body_of(containers.Exec),
            "ContainerList": page_of("Container"),
            "DeletedContainer": deleted("container.deleted"),
            "ContainerFileList": page_of("ContainerFile"),
            "DeletedContainerFile": deleted("container.file.deleted"),
            "ContainerCommitList": page_of("ContainerCommit"),
            "EgressDecisionList": page_of("EgressDecision"),
            "ContainerDiff": _diff(),
            "ContainerExecEvent": any_of(_output(), _done(), _failed()),
        },
    )


def _containers() -> tuple[Operation, ...]:
    return (
        Operation(
            place="POST /v1/containers",
            name="createContainer",
            summary="Create a container",
            body=Body(ref("CreateContainer"), examples={"a container": {"name": "analysis"}}),
            answer=ref("Container"),
            errors=(404,),
            scope="write",
            makes=True,
            python='container = client.containers.create(name="analysis")',
        ),
        Operation(
            place="GET /v1/containers",
            name="listContainers",
            summary="List containers",
            query=(*PAGE, Parameter("name", text(), "Only those of this name.")),
            answer=ref("ContainerList"),
            scope="read",
            python="client.containers.list()",
        ),
        Operation(
            place=_CONTAINER,
            name="getContainer",
            summary="Retrieve a container",
            answer=ref("Container"),
            errors=(404,),
            scope="read",
            python="client.containers.retrieve(container.id)",
        ),
        Operation(
            place="DELETE /v1/containers/{container_id}",
            name="deleteContainer",
            summary="Delete a container and all it holds",
            answer=ref("DeletedContainer"),
            errors=(404,),
            scope="write",
            python="client.containers.delete(container.id)",
        ),
    )


def _files() -> tuple[Operation, ...]:
    return (
        Operation(
            place=f"{_CONTAINER.replace('GET', 'POST')}/files",
            name="createContainerFile",
            summary="Put a file into a container",
            about="As a form with the file, or as JSON with the `file_id` of one that was uploaded before.",
            body=Body(ref("CreateContainerFile"), media=_FORM, others={"application/json": ref("CopyContainerFile")}),
            answer=ref("ContainerFile"),
            errors=(404,),
            scope="write",
            makes=True,
            python='client.containers.files.create(container.id, file=open("data.csv", "rb"))',
        ),
        Operation(
            place=f"{_CONTAINER}/files",
            name="listContainerFiles",
            summary="List the files of a container",
            query=(*PAGE, _COMMIT),
            answer=ref("ContainerFileList"),
            errors=(404,),
            scope="read",
            python="client.containers.files.list(container.id)",
        ),
        Operation(
            place=f"GET {_FILE}",
            name="getContainerFile",
            summary="Retrieve what is known of a file in a container",
            query=(_COMMIT,),
            answer=ref("ContainerFile"),
            errors=(404,),
            scope="read",
            python="client.containers.files.retrieve(file.id, container_id=container.id)",
        ),
        Operation(
            place=f"DELETE {_FILE}",
            name="deleteContainerFile",
            summary="Delete a file in a container",
            answer=ref("DeletedContainerFile"),
            errors=(404,),
            scope="write",
            python="client.containers.files.delete(file.id, container_id=container.id)",
        ),
        Operation(
            place=f"GET {_FILE}/content",
            name="getContainerFileContent",
            summary="Download a file of a container, or a range of it",
            query=(_RANGE, _COMMIT),
            media={"application/octet-stream": dict(_BYTES)},
            errors=(404, 416),
            scope="read",
            python="client.containers.files.content.retrieve(file.id, container_id=container.id).read()",
        ),
    )


def _history() -> tuple[Operation, ...]:
    posting = _CONTAINER.replace("GET", "POST")
    return (
        Operation(
            place=f"{_CONTAINER}/commits",
            name="listContainerCommits",
            summary="List the commits of a container",
            query=(AFTER, LIMIT, ORDER),
            answer=ref("ContainerCommitList"),
            errors=(404,),
            scope="read",
            extension=True,
        ),
        Operation(
            place=f"{_CONTAINER}/commits/{{commit_id}}/diff",
            name="diffContainerCommits",
            summary="What a commit has that another has not",
            query=(
                Parameter("from", text(), "The other commit; when absent, the one before it."),
                Parameter("text", {"type": "boolean", "default": False}, "With the lines of small texts."),
            ),
            answer=ref("ContainerDiff"),
            errors=(404,),
            scope="read",
            extension=True,
        ),
        Operation(
            place=f"{posting}/restore",
            name="restoreContainer",
            summary="Have the files of a container be as they were",
            about="It is a new commit; running processes end.",
            body=Body(ref("RestoreContainer")),
            answer=ref("ContainerCommit"),
            errors=(404,),
            scope="write",
            makes=True,
            extension=True,
        ),
        Operation(
            place=f"{posting}/fork",
            name="forkContainer",
            summary="A new container that begins as this one is, or was",
            body=Body(ref("ForkContainer"), required=False),
            answer=ref("Container"),
            errors=(404,),
            scope="write",
            makes=True,
            extension=True,
        ),
        Operation(
            place=f"{posting}/exec",
            name="execInContainer",
            summary="Carry out a command in a container",
            about="Its output comes as it is written. It ends with its client.",
            body=Body(ref("ContainerExec"), examples={"a command": {"command": "ls -l"}}),
            media={"text/event-stream": ref("ContainerExecEvent")},
            errors=(403, 404, 503),
            scope="write",
            extension=True,
        ),
        Operation(
            place=f"{_CONTAINER}/archive",
            name="getContainerArchive",
            summary="Download all files of a container as a tar archive",
            query=(_RANGE, _COMMIT),
            media={"application/x-tar": dict(_BYTES)},
            errors=(404, 416),
            scope="read",
            extension=True,
        ),
        Operation(
            place=f"{_CONTAINER}/egress",
            name="listContainerEgress",
            summary="List what the proxy of a container let through, and what not",
            about="Domain and port, how it was decided, why and when; never a path, a query, a header or a body.",
            query=PAGE,
            answer=ref("EgressDecisionList"),
            errors=(404,),
            scope="read",
            extension=True,
        ),
    )


def _diff() -> Schema:
    size, mode = nullable({"type": "integer"}), nullable(text("Permissions, in octal."))
    change = whole(
        {
            "path": text(),
            "change": one_of("added", "removed", "changed"),
            "kind": one_of("file", "directory", "symlink"),
            "bytes_before": size,
            "bytes_after": size,
            "mode_before": mode,
            "mode_after": mode,
            "text": nullable(text("The lines that differ, in the unified form.")),
        }
    )
    return whole(
        {
            "object": {"const": "container.diff"},
            "container_id": text(),
            "from": nullable(text()),
            "to": text(),
            "changes": list_of(change),
            "truncated": {"type": "boolean", "description": "Whether more differs than is shown."},
        }
    )


def _output() -> Schema:
    return whole({"type": {"const": "container.exec.output"}, "stream": one_of("stdout", "stderr"), "text": text()})


def _done() -> Schema:
    return whole(
        {
            "type": {"const": "container.exec.done"},
            "exit_code": nullable({"type": "integer"}),
            "timed_out": {"type": "boolean"},
            "truncated": {"type": "boolean"},
            "background": list_of(text()),
            "restarted": {"type": "boolean"},
            "breach": nullable(text()),
            "commit_id": nullable(text()),
        }
    )


def _failed() -> Schema:
    return whole({"type": text(), "message": text(), "param": nullable(text()), "code": text()})
