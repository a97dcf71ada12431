"""When the files of a workspace may leave the disk: when they are committed, and only then. No process is needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stateroom.clock import SystemClock
from stateroom.settings import WorkspaceSettings
from stateroom.tools.apply_patch import ApplyPatchTool
from stateroom.tools.tool import ToolCall
from stateroom.workspaces.content.store import ContentStore
from stateroom.workspaces.live.workspace import Workspace
from stateroom.workspaces.live.workspaces import Workspaces, WorkspaceSpec

SPEC = WorkspaceSpec(id="cntr_one", project="default", memory_bytes=1 << 28, idle_seconds=600)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Workspaces]:
    content = ContentStore(tmp_path / "content.db")
    live = Workspaces(tmp_path / "live", content, None, WorkspaceSettings(folders=0), SystemClock())
    await live.begin()
    yield live
    await live.close()
    await content.close()


async def pieces(text: str) -> AsyncIterator[bytes]:
    yield text.encode()


async def kept(workspace: Workspace) -> None:
    commit = await workspace.commit()
    assert commit is not None
    await workspace.kept(commit)


async def test_what_is_put_between_a_commit_and_its_rest_stays_on_the_disk(live: Workspaces) -> None:
    workspace = live.open(SPEC, None)
    await workspace.write("one", pieces("1"))
    await kept(workspace)
    await workspace.write("two", pieces("2"))
    await workspace.rest()
    assert await live.trim() == 0
    await kept(workspace)
    await workspace.rest()
    assert await live.trim() == 1
    await workspace.prepare()
    assert workspace.folder.read("two", bytes_max=10) == b"2"


async def test_files_whose_commit_is_not_known_to_be_kept_stay_on_the_disk(live: Workspaces) -> None:
    workspace = live.open(SPEC, None)
    await workspace.write("one", pieces("1"))
    await kept(workspace)
    await workspace.write("one", pieces("2"))
    commit = await workspace.commit()
    assert commit is not None
    await workspace.rest()  # somebody else's, while the record is being written
    assert await live.trim() == 0
    await workspace.kept(commit)
    await workspace.rest()
    assert await live.trim() == 1


async def test_asking_resting_files_for_a_commit_leaves_them_at_rest(live: Workspaces) -> None:
    workspace = live.open(SPEC, None)
    await workspace.write("one", pieces("1"))
    await kept(workspace)
    await workspace.rest()
    assert await workspace.commit() is None
    assert await live.trim() == 1


async def test_files_that_were_committed_leave_the_disk_and_come_back(live: Workspaces) -> None:
    workspace = live.open(SPEC, None)
    await workspace.write("one", pieces("1"))
    await kept(workspace)
    await workspace.rest()
    assert await live.trim() == 1
    assert not workspace.folder.path.exists()
    await workspace.prepare()
    assert workspace.folder.read("one", bytes_max=10) == b"1"


async def test_patches_of_one_file_at_the_same_time_are_all_in_it(live: Workspaces) -> None:
    workspace = live.open(SPEC, None)
    await workspace.write("notes", pieces("start\n"))

    async def open_it() -> Workspace:
        return workspace

    def patch(number: int) -> ToolCall:
        operation = {"type": "update_file", "path": "notes", "diff": f"@@\n start\n+line {number}\n"}
        item = {"type": "apply_patch_call", "call_id": str(number), "operation": operation}
        return ToolCall(
            id=str(number),
            project="default",
            run_id="resp_1",
            call_id=str(number),
            name="apply_patch",
            arguments="",
            item=item,
            workspace=open_it,
        )

    tool = ApplyPatchTool()
    results = await asyncio.gather(*[tool.run(patch(number)) for number in range(12)])
    assert not any(result.failed for result in results)
    lines = workspace.folder.read("notes", bytes_max=10_000).decode().split()
    assert sorted(int(word) for word in lines if word.isdigit()) == list(range(12))


async def test_a_directory_that_a_crash_left_half_removed_can_be_removed(live: Workspaces) -> None:
    left = live.root / "cntr_left"
    left.mkdir()
    await live.forget("cntr_left")
    assert not left.exists()
