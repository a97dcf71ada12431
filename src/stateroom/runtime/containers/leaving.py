"""What containers name of the content store, and letting go of everything else."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from typing import Final

from stateroom.journal.store import Index
from stateroom.runtime.containers.named import NamedContent
from stateroom.runtime.containers.state import COLLECTION, Container
from stateroom.runtime.records import Collection, Held, Records
from stateroom.workspaces.content.store import ContentStore
from stateroom.workspaces.live.folder import LiveFolder
from stateroom.workspaces.live.workspaces import folders

_PAGE: Final = 100


async def each_container(collection: Collection[Container], project: str) -> AsyncGenerator[Held[Container], None]:
    """Every container of a project, oldest first; what is dropped meanwhile ends nothing."""
    after = ""
    while True:
        page = await collection.page(project, after=after, limit=_PAGE, descending=False)
        following = [held.id for held in page[:_PAGE]]
        for held in page[:_PAGE]:
            yield held
        if len(page) <= _PAGE:
            return
        # The page after one that is gone cannot be asked for: then it is looked at from the last that is there.
        after = ""
        for candidate in reversed(following):
            if await collection.get(project, candidate) is not None:
                after = candidate
                break


async def drop_unnamed(records: Records, index: Index, content: ContentStore) -> int:
    """Delete what no container names, at once; bytes freed. For a data directory that no server works on."""
    collection = records.collection(COLLECTION, Container)
    names = NamedContent(collection, remembered_bytes=0)
    named: set[str] = set()
    for project in await index.projects():
        async with aclosing(each_container(collection, project)) as containers:
            async for held in containers:
                named.update((await names.of(held)).digests(held))
    return await content.collect(named, float("inf"))


def remove_folders(root: Path, project: str) -> None:
    """Remove the folders of a project's workspaces."""
    for workspace_id, standing in folders(root):
        if standing is None or standing.project == project:
            LiveFolder(root, workspace_id, project).remove()
