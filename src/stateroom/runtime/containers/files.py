"""The files of a container as clients see them: listed and read from its commits, put and removed through its folder.

A file has no record of its own: its id follows from its path, what else is known of it stands in the tree. What is
listed is what the latest commit holds; every response, upload and command of a client ends with one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

import msgspec

from stateroom.blobs.store import Blobs
from stateroom.journal.entries import Fact
from stateroom.runtime.containers.archive import Archive
from stateroom.runtime.containers.containers import Containers
from stateroom.runtime.containers.state import (
    DELETION,
    UPLOAD,
    USER_FILES_MAX,
    Container,
    container_file_not_found,
    container_full,
)
from stateroom.runtime.files.files import Files, Incoming
from stateroom.runtime.records import Held
from stateroom.wire.containers import container_file_id
from stateroom.workspaces.content.store import TreeEntry

_KNOWN_MAX: Final = 8
"""Lists of files in memory."""


class ContainerFile(msgspec.Struct, frozen=True):
    """A file as it stands in a commit."""

    id: str
    path: str
    """Within the workspace."""
    bytes: int
    created_at: int
    """Seconds since the epoch: when it was written."""
    source: str
    """user or assistant."""
    digest: str


class ContainerFiles:
    """The files of all containers."""

    def __init__(self, containers: Containers, files: Files, blobs: Blobs) -> None:
        self._containers = containers
        self._parts = containers.parts
        self._files = files
        self._blobs = blobs
        self.bytes_max = min(files.bytes_max, self._parts.settings.disk_bytes)
        """Of one file."""
        self._known: OrderedDict[tuple[str, str], dict[str, ContainerFile]] = OrderedDict()

    def incoming(self) -> Incoming:
        """For bytes of which it shows at their end what becomes of them."""
        return self._files.incoming()

    async def all(self, project: str, container_id: str, commit_id: str = "") -> list[ContainerFile]:
        """The files of a commit, or of the latest, oldest first. Raises NotFound."""
        held = await self._containers.get(project, container_id)
        return list((await self._by_id(held, await self.tree(held, commit_id))).values())

    async def get(self, project: str, container_id: str, file_id: str, commit_id: str = "") -> ContainerFile:
        """Raises NotFound."""
        held = await self._containers.get(project, container_id)
        found = (await self._by_id(held, await self.tree(held, commit_id))).get(file_id)
        if found is None:
            raise container_file_not_found(file_id)
        return found

    def read(self, file: ContainerFile, *, first: int = 0, last: int | None = None) -> AsyncGenerator[bytes, None]:
        """Its bytes from `first` to `last` (inclusive; None: the end). Raises StorageError."""
        return self._parts.content.read(file.digest, first=first, last=last)

    async def tree(self, held: Held[Container], commit_id: str = "") -> str:
        """Digest of the files of a commit, or of the latest; '' when there never was one. Raises NotFound."""
        head = held.state.head
        if not commit_id or (head is not None and head.id == commit_id):
            return "" if head is None else head.tree
        return (await self._containers.commit(held, commit_id)).tree

    async def archive(self, project: str, container_id: str, commit_id: str = "") -> Archive:
        """All that a commit, or the latest, holds, as one file. Raises NotFound."""
        held = await self._containers.get(project, container_id)
        tree = await self.tree(held, commit_id)
        entries = await self._parts.content.entries(tree) if tree else []
        return Archive(self._parts.content, container_id, tree, entries)

    async def filename(self, project: str, file_id: str) -> str:
        """Of one of the project's files. Raises NotFound."""
        return (await self._files.get(project, file_id)).filename

    async def add(
        self, project: str, container_id: str, incoming: Incoming, filename: str, *, also: Sequence[Fact] = ()
    ) -> ContainerFile:
        """Put bytes that have come in under a name. Raises NotFound, InvalidRequest, StorageError."""
        digest = await incoming.finish()
        return await self._put(project, container_id, filename, digest, incoming.size, also)

    async def copy(self, project: str, container_id: str, file_id: str, *, also: Sequence[Fact] = ()) -> ContainerFile:
        """Put a copy of one of the project's files. Raises NotFound, InvalidRequest, StorageError."""
        file = await self._files.get(project, file_id)
        return await self._put(project, container_id, file.filename, file.digest, file.bytes, also)

    async def delete(self, project: str, container_id: str, file_id: str) -> None:
        """Remove it; earlier commits still have it. Raises NotFound."""
        async with self._containers.changing(container_id):
            held = await self._containers.get(project, container_id)
            file = await self.get(project, container_id, file_id)
            workspace = await self._containers.workspace(held)
            await workspace.remove(file.path)

            def change(state: Container) -> Container:
                left = {path: digest for path, digest in state.user_files.items() if path != file.path}
                return msgspec.structs.replace(state, user_files=left)

            await self._containers.keep(held, workspace, DELETION, change=change)

    async def _put(
        self, project: str, container_id: str, filename: str, digest: str, size: int, also: Sequence[Fact]
    ) -> ContainerFile:
        async with self._containers.changing(container_id):
            held = await self._containers.get(project, container_id)
            self._check_room(held.state, size)
            workspace = await self._containers.workspace(held)
            async with aclosing(self._blobs.chunks(digest)) as pieces:
                await workspace.write(filename, pieces)

            def change(state: Container) -> Container:
                known = {path: said for path, said in state.user_files.items() if path != filename}
                for path in list(known)[: max(0, len(known) + 1 - USER_FILES_MAX)]:
                    del known[path]
                return msgspec.structs.replace(state, user_files={**known, filename: digest[:12]})

            held = await self._containers.keep(held, workspace, UPLOAD, change=change, also=also)
        file_id = container_file_id(container_id, filename)
        found = (await self._by_id(held, await self.tree(held))).get(file_id)
        if found is None:  # a process of the container was quicker
            raise container_file_not_found(file_id)
        return found

    def _check_room(self, state: Container, size: int) -> None:
        settings, head = self._parts.settings, state.head
        if size + (0 if head is None else head.bytes) > settings.disk_bytes:
            raise container_full(f"more than {settings.disk_bytes} bytes", "disk_bytes")
        if head is not None and head.files >= settings.files:
            raise container_full(f"more than {settings.files} files", "files")

    async def _by_id(self, held: Held[Container], tree: str) -> dict[str, ContainerFile]:
        if not tree:
            return {}
        name = (held.id, tree)
        found = self._known.get(name)
        if found is None:
            found = await asyncio.to_thread(_listed, held.id, await self._parts.content.entries(tree))
            self._known[name] = found
            while len(self._known) > _KNOWN_MAX:
                self._known.popitem(last=False)
        users = held.state.user_files
        return {
            key: msgspec.structs.replace(file, source="user")
            if file.path in users and file.digest.startswith(users[file.path])
            else file
            for key, file in found.items()
        }


def _listed(container_id: str, entries: Sequence[TreeEntry]) -> dict[str, ContainerFile]:
    files = [
        ContainerFile(
            container_file_id(container_id, entry.path),
            entry.path,
            entry.size,
            max(0, entry.mtime_ns // 1_000_000_000),
            "assistant",
            entry.digest,
        )
        for entry in entries
        if entry.kind == "file"
    ]
    files.sort(key=lambda file: (file.created_at, file.path))
    return {file.id: file for file in files}
