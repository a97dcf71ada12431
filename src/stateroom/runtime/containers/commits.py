"""What became of a container's files: its commits, what differs between two, going back to one, and forks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final, Literal, NamedTuple

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Fact
from stateroom.journal.store import MARK_MAX
from stateroom.runtime.containers.containers import Containers, new_container_id
from stateroom.runtime.containers.state import IDLE, RESTORED, CommitNote, Container
from stateroom.runtime.records import Held
from stateroom.workspaces.content.store import Change, ContentStore
from stateroom.workspaces.live.jobs import bounded
from stateroom.workspaces.live.workspaces import new_commit_id

CHANGES_MAX: Final = 10_000
"""Paths of a diff."""
TEXTS_BYTES: Final = 4 * 1024 * 1024
"""Of all files of a diff together; the others are shown without."""


class FileChange(msgspec.Struct, frozen=True):
    """A path that differs between two commits."""

    path: str
    change: Literal["added", "removed", "changed"]
    kind: str
    bytes_before: int | None
    bytes_after: int | None
    mode_before: int | None
    """Permissions."""
    mode_after: int | None
    text: str | None = None
    """The lines that differ, in the unified form; None: it is no text, too large, or was not asked for."""


class Changes(NamedTuple):
    """What differs between two commits."""

    base: str
    """The one that the other was held against; '' when it is the first."""
    changes: list[FileChange]
    truncated: bool
    """There is more."""


class ContainerCommits:
    """The commits of all containers."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers
        self._content: ContentStore = containers.parts.content

    async def page(
        self, project: str, container_id: str, *, after: str = "", before: str = "", limit: int, descending: bool
    ) -> list[CommitNote]:
        """By age, one more than `limit` when there are more. Raises NotFound, InvalidRequest on unknown cursors."""
        commits = self._containers.commits(await self._containers.get(project, container_id))
        marks = [MARK_MAX if descending else -1, -1 if descending else MARK_MAX]
        for place, (param, identifier) in enumerate((("after", after), ("before", before))):
            if identifier:
                named = await commits.find(identifier)
                if named is None:
                    message = f"`{param}`: no commit with id '{identifier[:256]}'."
                    raise InvalidRequest(message, code="invalid_value", param=param)
                marks[place] = named[0]
        upper, lower = marks if descending else reversed(marks)
        found: list[CommitNote] = []
        async with aclosing(commits.each(after=lower, before=upper, newest_first=descending)) as notes:
            async for note in notes:
                found.append(note)
                if len(found) > limit:
                    break
        return found

    async def diff(
        self, project: str, container_id: str, commit_id: str, base_id: str = "", *, text: bool = False
    ) -> Changes:
        """What a commit has that another, or the one before it, has not. Raises NotFound."""
        held = await self._containers.get(project, container_id)
        after = await self._containers.commit(held, commit_id, "commit_id")
        before = None
        if base_id or after.parent:
            before = await self._containers.commit(held, base_id or after.parent, "from")
        base = "" if before is None else before.tree
        found = await self._content.diff(base, after.tree, limit=CHANGES_MAX)
        changes: list[FileChange] = []
        left = TEXTS_BYTES
        for each in found:
            change = _shown(each)
            size = (change.bytes_before or 0) + (change.bytes_after or 0)
            if text and change.kind == "file" and size <= left:
                left -= size
                lines = await self._content.text_diff(each)
                change = msgspec.structs.replace(change, text=lines)
            changes.append(change)
        return Changes("" if before is None else before.id, changes, found.truncated)

    async def restore(
        self,
        project: str,
        container_id: str,
        commit_id: str,
        *,
        also: Callable[[str], Sequence[Fact]] = lambda _: (),
    ) -> CommitNote:
        """Have the files and variables be as they were at a commit; what is there now is committed first.

        It is a new commit; `also` gives by its id what is committed with it. Raises NotFound, StorageError.
        """
        containers = self._containers
        async with containers.changing(container_id):
            held = await containers.get(project, container_id)
            wanted = await containers.commit(held, commit_id)
            workspace = await containers.workspace(held)
            if workspace.is_live or workspace.has_folder:
                held = await containers.keep(held, workspace, IDLE)
            now = containers.parts.records.now()
            head = held.state.head
            parent, left = ("", ()) if head is None else (head.id, head.left)
            note = msgspec.structs.replace(
                wanted,
                id=new_commit_id(),
                at=now,
                why=RESTORED,
                parent=parent,
                response="",
                new_bytes=0,
                left=bounded((*wanted.left, *left)),  # whoever goes on from either believes that its own run
            )
            await workspace.discard()
            await containers.point(held, note, also=also(note.id))
            return note

    async def fork(
        self,
        project: str,
        container_id: str,
        new_id: str = "",
        commit_id: str = "",
        name: str = "",
        *,
        also: Sequence[Fact] = (),
    ) -> Held[Container]:
        """A new container that begins as this one was at a commit, or is at its latest: one record, nothing is copied.

        Raises NotFound.
        """
        held = await self._containers.get(project, container_id)
        head = held.state.head
        base = None
        if commit_id or head is not None:
            base = await self._containers.commit(held, commit_id or ("" if head is None else head.id))
        state = msgspec.structs.replace(
            held.state,
            name=name or held.state.name,
            head=None,
            made_for="",
            chain="",
            began=f"{held.id}/{'' if base is None else base.id}",
        )
        return await self._containers.make(project, new_id or new_container_id(), state, base=base, also=also)


def _shown(each: Change) -> FileChange:
    before, after = each.before, each.after
    entry = after or before
    assert entry is not None, "a path differs that is on neither side"
    return FileChange(
        each.path,
        "added" if before is None else "removed" if after is None else "changed",
        entry.kind,
        bytes_before=None if before is None else before.size,
        bytes_after=None if after is None else after.size,
        mode_before=None if before is None else before.mode,
        mode_after=None if after is None else after.mode,
    )
