"""Kill points of workspaces: which of them a piece of work passes, and what can be hit there. No server dies here."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from stateroom.clock import SystemClock
from stateroom.errors import WorkspaceError
from stateroom.settings import WorkspaceSettings
from stateroom.testing import sandboxes
from stateroom.testing.kill_points import POINTS, KillPoints
from stateroom.testing.mortal_workspaces import MortalContent, MortalRestore, MortalWorkspace, MortalWorkspaces
from stateroom.workspaces.content import database as content_database
from stateroom.workspaces.drivers.bubblewrap import BubblewrapDriver
from stateroom.workspaces.layout import LIVE
from stateroom.workspaces.live import workspaces as live_workspaces
from stateroom.workspaces.live.workspaces import WorkspaceSpec

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")


class Watched(KillPoints):
    """Takes down what is passed."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: list[str] = []

    def reach(self, point: str) -> None:
        assert point in POINTS, f"{point} cannot be asked for"
        self.passed.append(point)
        super().reach(point)

    def taken(self) -> list[str]:
        """What was passed since the last look, each once."""
        passed, self.passed = self.passed, []
        return list(dict.fromkeys(passed))


@pytest.fixture
def points() -> Watched:
    return Watched()


@pytest.fixture
async def workspaces(
    tmp_path: Path, points: Watched, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MortalWorkspaces]:
    monkeypatch.setattr(live_workspaces, "Workspace", MortalWorkspace)
    monkeypatch.setattr(content_database, "Restore", MortalRestore)
    monkeypatch.setattr(MortalRestore, "points", points, raising=False)
    content = MortalContent(points, tmp_path / "content.db")
    driver = BubblewrapDriver(tmp_path)
    held = MortalWorkspaces(points, tmp_path / LIVE, content, driver, WorkspaceSettings(), SystemClock())
    await held.begin()
    yield held
    await held.close()
    await content.close()


SPEC = WorkspaceSpec(id="cntr_1", project="p", memory_bytes=256 * 1024 * 1024, idle_seconds=60)


async def test_commands_and_commits_pass_their_points_in_order(workspaces: MortalWorkspaces, points: Watched) -> None:
    workspace = workspaces.open(SPEC, None)
    run = partial(workspace.execute, timeout=20, output_bytes=1000)
    await run("echo hi | tee file")
    started = ["before_start_sandbox", "after_start_sandbox"]
    assert points.taken() == ["before_command", *started, "mid_command", "after_command"]
    commit = await workspace.commit()
    assert commit is not None
    stored = ["before_content", "after_content", "after_snapshot"]
    assert points.taken() == ["before_freeze", "after_freeze", *stored]
    await workspace.kept(commit)
    assert points.taken() == ["before_kept", "after_kept"]
    await workspace.discard()
    assert points.taken() == ["before_discard", "after_discard"]
    await workspace.prepare()
    assert points.taken() == ["before_materialise", "mid_materialise", "after_materialise"]
    await workspaces.content.collect([], SystemClock().now() + 10)
    assert points.taken()[-1] == "after_sweep"


async def test_a_sandbox_can_be_hit_at_a_point_while_this_process_goes_on(
    workspaces: MortalWorkspaces, points: Watched, tmp_path: Path
) -> None:
    workspace = workspaces.open(SPEC, None)
    await workspace.execute("true", timeout=20, output_bytes=1000)
    kinds = {member.kind for member in sandboxes.members(tmp_path)}
    assert kinds == {"bwrap", "agent"}
    points.arm("mid_command:1@agent")
    with pytest.raises(WorkspaceError):
        await workspace.execute("echo said; sleep 20", timeout=20, output_bytes=1000)
    done = await workspace.execute("echo again", timeout=20, output_bytes=1000)
    assert (done.stdout, done.restarted) == ("again\n", True)


def test_a_victim_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a victim"):
        KillPoints().arm("mid_command:1@cat")
