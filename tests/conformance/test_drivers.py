"""Every driver of sandboxes passes the conformance suite. A new one adds its name and how it is made to DRIVERS."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from stateroom.testing import driver_conformance
from stateroom.testing.driver_conformance import CASES, Case
from stateroom.testing.driver_isolation import ISOLATION
from stateroom.workspaces.drivers.bubblewrap import BubblewrapDriver
from stateroom.workspaces.drivers.cgroups import Cgroups
from stateroom.workspaces.drivers.landlock import LandlockDriver
from stateroom.workspaces.drivers.oci import OciDriver
from stateroom.workspaces.drivers.unsafe import UnsafeDriver
from stateroom.workspaces.workspace import Driver
from tests.sandboxes import reason_against

IMAGE = os.environ.get("STATEROOM_TEST_IMAGE", "localhost/stateroom-test:latest")
"""An image with a Python, which `podman` or `docker` has already. From Debian, without a registry:
`mmdebstrap --variant=minbase --include=python3 bookworm rootfs.tar`, then `podman import` or `docker import` it."""
DRIVERS: dict[str, Callable[[Path], Driver]] = {
    "bubblewrap": BubblewrapDriver,
    "bubblewrap without control groups": lambda data: BubblewrapDriver(data, cgroups=Cgroups()),
    "landlock": LandlockDriver,
    "podman": lambda data: OciDriver(data, engine="podman", image=IMAGE),
    "docker": lambda data: OciDriver(data, engine="docker", image=IMAGE),
    "unsafe": UnsafeDriver,
}


@functools.cache
def why_not(name: str) -> str:
    """Why a driver cannot be tried on this machine; empty: it can."""
    return reason_against(lambda folder: driver_conformance.opened(DRIVERS[name](folder), folder))


@pytest.mark.parametrize("case", CASES + ISOLATION, ids=lambda case: case.__name__)
@pytest.mark.parametrize("name", DRIVERS)
def test_a_driver_keeps_the_promises_of_the_seam(name: str, case: Case, tmp_path: Path) -> None:
    if reason := why_not(name):
        pytest.skip(f"{name} cannot be used on this machine: {reason}")
    driver = DRIVERS[name](tmp_path)
    if case in ISOLATION and driver.caps.isolation == "none":
        pytest.skip("this driver keeps nothing in, and says so")

    async def hold() -> None:
        async with driver_conformance.opened(driver, tmp_path) as bench:
            await case(bench)

    asyncio.run(hold())
