"""Which driver a server uses: the first that can start a sandbox, or none with the reasons."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

import pytest

from stateroom.errors import NoSandbox
from stateroom.settings import WorkspaceSettings
from stateroom.testing import driver_conformance
from stateroom.testing.driver_conformance import until
from stateroom.workspaces.drivers.bubblewrap import BubblewrapDriver
from stateroom.workspaces.drivers.choice import Chosen, choose_driver, make_driver
from stateroom.workspaces.drivers.oci import OciDriver
from stateroom.workspaces.drivers.unsafe import UnsafeDriver
from stateroom.workspaces.layout import TRIALS

SERVER: Final = """
import asyncio, sys
from stateroom.workspaces.drivers.choice import Chosen
from stateroom.workspaces.drivers.unsafe import UnsafeDriver

class Slow(UnsafeDriver):
    async def start(self, spec):
        await asyncio.Event().wait()

asyncio.run(Chosen([Slow(sys.argv[1])], sys.argv[1]).settled())
"""


def broken(data: Path) -> BubblewrapDriver:
    return BubblewrapDriver(data, program="/bin/false")


async def test_the_first_that_can_is_kept(tmp_path: Path) -> None:
    chosen = Chosen([UnsafeDriver(tmp_path), broken(tmp_path)], tmp_path)
    assert (await chosen.settled()).name == "unsafe"
    files = tmp_path / "files"
    files.mkdir()
    sandbox = await chosen.start(driver_conformance.specification("one", files))
    await sandbox.stop()
    assert chosen.name == "unsafe"
    assert chosen.caps.isolation == "none"
    assert chosen.why_not == ""


async def test_one_that_cannot_is_passed_over_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = Chosen([broken(tmp_path), UnsafeDriver(tmp_path)], tmp_path)
    assert chosen.name == "bubblewrap"
    both = await asyncio.gather(chosen.settled(), chosen.settled())
    assert {driver.name for driver in both} == {"unsafe"}
    assert chosen.name == "unsafe"
    assert caplog.text.count("workspaces.fallback driver=unsafe because bubblewrap: ") == 1


async def test_where_none_can_the_reason_of_each_is_told(tmp_path: Path) -> None:
    chosen = Chosen([broken(tmp_path), OciDriver(tmp_path, engine="podman", image="")], tmp_path)
    with pytest.raises(NoSandbox, match=r"bubblewrap: .*; podman: .*workspaces.image.*doctor") as caught:
        await chosen.start(driver_conformance.specification("one", tmp_path))
    assert caught.value.status == 503
    assert chosen.why_not == caught.value.message
    report = await chosen.probe()
    assert not report.usable
    assert report.reason == chosen.why_not


async def test_unsafe_is_the_last_resort_and_only_that(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen = Chosen([broken(tmp_path)], tmp_path, last_resort=UnsafeDriver(tmp_path))
    assert (await chosen.settled()).name == "unsafe"
    assert "nothing is kept in" in caplog.text
    chosen = Chosen([UnsafeDriver(tmp_path)], tmp_path, last_resort=broken(tmp_path))
    assert (await chosen.settled()).name == "unsafe"
    settings = WorkspaceSettings(driver="podman", image="", unsafe=True)
    driver, _ = choose_driver(settings, tmp_path)
    assert driver is not None
    with pytest.raises(NoSandbox):
        await driver.start(driver_conformance.specification("one", tmp_path))


async def test_a_trial_leaves_nothing(tmp_path: Path) -> None:
    chosen = Chosen([broken(tmp_path), UnsafeDriver(tmp_path)], tmp_path)
    assert (await chosen.settled()).name == "unsafe"
    assert not (tmp_path / TRIALS).exists()


async def test_what_a_server_that_was_killed_in_a_trial_leaves_is_gone_at_the_next_start(tmp_path: Path) -> None:
    data, temporary = tmp_path / "data", tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(temporary)}
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, str(data), env=environment)
    try:
        await until(lambda: bool(list((data / TRIALS).glob("*/files"))), "nothing was tried")
    finally:
        server.kill()
        await server.wait()
    assert list((data / TRIALS).iterdir())
    assert not list(temporary.iterdir())
    await Chosen([UnsafeDriver(data)], data).sweep()
    assert not (data / TRIALS).exists()


def test_what_is_switched_off_says_so(tmp_path: Path) -> None:
    assert choose_driver(WorkspaceSettings(driver="none"), tmp_path) == (
        None,
        "This server carries out no hosted tools (`workspaces.driver`).",
    )


def test_every_name_of_the_settings_makes_a_driver(tmp_path: Path) -> None:
    for name in ("bubblewrap", "landlock", "docker", "podman"):
        assert make_driver(name, WorkspaceSettings(image="x"), tmp_path).name == name
