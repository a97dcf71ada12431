"""What is left on the disk of the skills of containers that are gone."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from stateroom.app import Application
from stateroom.runtime.skills import folders, mounting
from stateroom.settings import BackendSettings, Settings
from stateroom.testing.driver_conformance import until
from stateroom.wire.containers import NewContainer
from tests.bundles import zip_of


async def test_the_folders_of_inline_skills_go_with_their_last_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MOUNTING_SECONDS", 0.0)
    monkeypatch.setattr(mounting, "HELD_SECONDS", 0.5)
    backends = (BackendSettings(url="http://127.0.0.1:9/v1", models=("none",)),)
    app = Application(Settings(data=str(tmp_path / "data"), backends=backends, shutdown_seconds=0))
    await app.start()
    try:
        packed = base64.b64encode(zip_of()).decode()
        source = {"type": "base64", "media_type": "application/zip", "data": packed}
        skill = {"type": "inline", "name": "geometry", "description": "Areas.", "source": source}
        made = [await app.containers.create("default", NewContainer("one", skills=[skill])) for _ in range(2)]
        for held in made:
            workspace = await app.containers.workspace(held)
            done = await workspace.execute("cat /skills/geometry/area.py", timeout=30, output_bytes=1000)
            assert done.exit_code == 0, done.stderr
        unpacked = tmp_path / "data" / "skills" / "unpacked"
        [folder] = unpacked.iterdir()
        await until(lambda: not app.held_blobs.is_held(folder.name), "what the requests held is let go of")
        await app.containers.delete("default", made[0].id)
        assert len(list(unpacked.iterdir())) == 1
        await app.containers.delete("default", made[1].id)
        assert list(unpacked.iterdir()) == []
    finally:
        await app.stop()
