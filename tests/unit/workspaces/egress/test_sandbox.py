"""From inside a real sandbox, which has no other way out."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from stateroom.errors import StateroomError
from stateroom.workspaces.channels.agent import Agent
from stateroom.workspaces.drivers.bubblewrap import BubblewrapDriver
from stateroom.workspaces.workspace import WORKSPACE, SandboxSpec
from tests.unit.workspaces.egress.stage import API, OTHER, SECRET, Roots, Site, Stage, site, stage

INSIDE = """
import os, socket, ssl, sys, urllib.error, urllib.request
api, other = sys.argv[1:]
request = urllib.request.Request(api, headers={"Authorization": "Bearer " + os.environ["TOKEN"]})
print("answer", urllib.request.urlopen(request).read().decode())
try:
    urllib.request.urlopen(other)
except urllib.error.URLError as error:
    print("refused", error)
for address in (("1.1.1.1", 443), ("127.0.0.1", int(api.rsplit(":", 1)[1].strip("/")))):
    try:
        socket.create_connection(address, 2)
    except OSError as error:
        print("direct", type(error).__name__)
try:
    socket.getaddrinfo("example.com", 443)
except OSError as error:
    print("name", type(error).__name__)
"""


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[tuple[Site, Roots]]:
    roots = Roots(tmp_path)
    async with site(roots.server(API, OTHER)) as made:
        yield made, roots


async def inside(sandbox: Stage, *argv: str) -> tuple[int, str, str]:
    """What a program prints that runs in a sandbox with the policy of the stage."""
    files = sandbox.directory / "files"
    files.mkdir(mode=0o700)
    assert sandbox.policy is not None
    driver = BubblewrapDriver(sandbox.directory)
    spec = SandboxSpec(
        id="cntr_one",
        files=str(files),
        memory_bytes=512 * 1024 * 1024,
        processes=32,
        disk_bytes=64 * 1024 * 1024,
        mounts=sandbox.proxy.mounts(sandbox.policy),
        environment=sandbox.proxy.environment(sandbox.policy),
        egress=str(sandbox.path),
    )
    try:
        started = await driver.start(spec)
    except StateroomError as error:
        pytest.skip(f"bubblewrap does not work here: {error}")
    try:
        sandbox.proxy.give("cntr_one", files.stat().st_uid)
        agent = await Agent.connect(started)
        process = await agent.spawn(list(argv), cwd=WORKSPACE)
        out = {"stdout": b"", "stderr": b""}
        async with asyncio.timeout(30):
            async for stream, data in process.read():
                out[stream] += data
            code = await process.wait()
        await agent.close()
        return code, out["stdout"].decode(), out["stderr"].decode()
    finally:
        await started.stop()


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
async def test_python_in_a_sandbox_reaches_what_is_allowed_and_nothing_else(secure: tuple[Site, Roots]) -> None:
    server, roots = secure
    async with stage(roots=roots.path) as sandbox:
        sandbox.directory.chmod(0o711)
        await sandbox.open(f"{API}:{server.port}", secrets=[(API, "TOKEN", SECRET)])
        urls = (f"https://{API}:{server.port}/", f"https://{OTHER}:{server.port}/")
        code, out, err = await inside(sandbox, "python3", "-c", INSIDE, *urls)
        assert code == 0, err
        assert server.asked[0][2]["authorization"] == f"Bearer {SECRET}"
        assert sandbox.placeholder in out.split("\n")[0]
        assert f"{OTHER} is not in the allowed_domains" in out
        assert out.count("direct") == 2
        assert out.count("name") >= 1
        assert SECRET not in out + err
        assert len(server.asked) == 1
        if os.geteuid() == 0:
            assert sandbox.path.stat().st_uid != 0


@pytest.mark.skipif(not (shutil.which("bwrap") and shutil.which("curl")), reason="bubblewrap or curl is missing")
async def test_curl_in_a_sandbox_uses_a_secret_it_never_sees(secure: tuple[Site, Roots]) -> None:
    server, roots = secure
    async with stage(roots=roots.path) as sandbox:
        sandbox.directory.chmod(0o711)
        await sandbox.open(f"{API}:{server.port}", secrets=[(API, "TOKEN", SECRET)])
        command = f'curl -sSi -u "me:$TOKEN" https://{API}:{server.port}/; env; curl -sS http://{OTHER}/'
        code, out, err = await inside(sandbox, "bash", "-c", command)
        assert code == 0, err
        assert out.startswith("HTTP/1.1 200 Connection established")
        assert "x-seen: yes" in out.lower()
        assert "is not in the allowed_domains" in out
        assert SECRET not in out + err
        assert len(server.asked) == 1
