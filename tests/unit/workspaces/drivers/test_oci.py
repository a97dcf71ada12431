"""What is the container engines' own: images, what dies with the server, what is left behind, and egress."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
from pathlib import Path
from typing import Final, Literal

import pytest

from stateroom.errors import NoSandbox, SandboxFailed
from stateroom.testing import driver_conformance
from stateroom.testing.driver_conformance import opened, processes_with, until
from stateroom.workspaces.channels.agent import Agent
from stateroom.workspaces.drivers.oci import OciDriver
from tests.sandboxes import reason_against

IMAGE: Final = os.environ.get("STATEROOM_TEST_IMAGE", "localhost/stateroom-test:latest")
ENGINES: Final[tuple[Literal["docker", "podman"], ...]] = ("podman", "docker")
SERVER: Final = """
import asyncio, sys
from pathlib import Path
from stateroom.testing.driver_conformance import opened
from stateroom.workspaces.drivers.oci import OciDriver

async def main():
    driver = OciDriver(sys.argv[1], engine=sys.argv[2], image=sys.argv[3])
    async with opened(driver, Path(sys.argv[1]), name="served") as bench:
        await bench.shell("setsid -f sleep 54351 >/dev/null 2>&1; sleep 54351 &")
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@functools.cache
def why_not(engine: Literal["docker", "podman"]) -> str:
    return reason_against(lambda folder: opened(OciDriver(folder, engine=engine, image=IMAGE), folder))


@pytest.fixture(params=ENGINES)
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> OciDriver:
    if reason := why_not(request.param):
        pytest.skip(f"{request.param} cannot be used on this machine: {reason}")
    return OciDriver(tmp_path, engine=request.param, image=IMAGE)


async def test_a_probe_finds_every_promise_held(driver: OciDriver) -> None:
    report = await driver.probe()
    assert report.usable, report.reason
    assert {row.name: row.detail for row in report.promises if not row.held} == {}


async def test_an_image_that_is_not_there_is_never_fetched(driver: OciDriver, tmp_path: Path) -> None:
    other = OciDriver(tmp_path, engine=driver.name, image="localhost/stateroom-no-such-image")  # type: ignore[arg-type]  # one of ENGINES
    with pytest.raises(SandboxFailed, match="could not be started"):
        await other.start(driver_conformance.specification("one", tmp_path))


async def test_the_workspace_is_at_both_of_its_names(driver: OciDriver, tmp_path: Path) -> None:
    async with opened(driver, tmp_path) as bench:
        (bench.files / "given").write_text("here")
        assert (await bench.shell("cat /workspace/given /mnt/data/given")).stdout == b"herehere"
        assert (await bench.shell("id -u")).stdout.strip() == str(bench.files.stat().st_uid).encode()


async def test_the_egress_proxy_is_reached_and_nothing_else(driver: OciDriver, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"proxy says " + await reader.readline())
        await writer.drain()
        writer.close()

    files, path = tmp_path / "files", tmp_path / "egress.sock"
    files.mkdir()
    server = await asyncio.start_unix_server(serve, path)
    sandbox = await driver.start(driver_conformance.specification("egress", files, egress=str(path)))
    try:
        agent = await Agent.connect(sandbox)
        code = "import socket; s = socket.create_connection(('127.0.0.1', 3128), 5); s.sendall(b'hi\\n');"
        done = await agent.run(["python3", "-c", code + "print(s.recv(99))"], timeout=30, keep_bytes=999)
        assert done.stdout == b"b'proxy says hi\\n'\n", done.stderr
        await agent.close()
    finally:
        await sandbox.stop()
        server.close()


async def test_a_killed_server_takes_its_containers_along_and_the_rest_is_swept(
    driver: OciDriver, tmp_path: Path
) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, str(tmp_path), driver.name, IMAGE, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    assert await server.stdout.readline() == b"ready\n"
    assert len(processes_with("54351")) == 2
    server.kill()
    await server.wait()
    await until(lambda: not processes_with("54351"), "they live on")
    async with asyncio.timeout(30):
        while await driver.sweep():
            pass  # the engine may be about to remove it by itself


async def test_without_an_image_or_an_engine_the_reason_is_told(tmp_path: Path) -> None:
    spec = driver_conformance.specification("one", tmp_path)
    with pytest.raises(NoSandbox, match=r"workspaces\.image"):
        await OciDriver(tmp_path, engine="podman", image="").start(spec)
    with pytest.raises(NoSandbox, match="was not found"):
        await OciDriver(tmp_path, engine="docker", image="x", program="/nowhere/docker").start(spec)
    for program in ("/nowhere/docker", "/bin/false"):
        assert await OciDriver(tmp_path, engine="docker", image="x", program=program).sweep() == 0


async def test_an_engine_that_gives_up_is_noticed_at_once_and_its_reason_told(tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.write_text(
        "#!/bin/sh\necho engine: nobody is there >&2; echo \"Run 'engine --help' for more information\" >&2\n"
    )
    engine.chmod(0o755)
    driver = OciDriver(tmp_path, engine="docker", image="x", program=str(engine))
    (tmp_path / "files").mkdir()
    async with asyncio.timeout(30):  # a container that starts is given longer
        with pytest.raises(SandboxFailed, match=r"could not be started: engine: nobody is there$"):
            await driver.start(driver_conformance.specification("one", tmp_path / "files"))


async def test_a_path_that_no_engine_can_bind_is_refused(tmp_path: Path) -> None:
    files = tmp_path / "with,comma"
    files.mkdir()
    spec = driver_conformance.specification("one", files)
    with pytest.raises(SandboxFailed, match="comma"):
        await OciDriver(tmp_path, engine="podman", image="x", program="/bin/true").start(spec)
