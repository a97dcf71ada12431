"""The socket of a workspace: who may use it, how much, and what remains of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from aiohttp import web

from stateroom.workspaces.egress.http import Bounds
from stateroom.workspaces.egress.proxy import TRUST, EgressProxy
from tests.unit.workspaces.egress.stage import API, OTHER, SECRET, Roots, Site, Stage, policy, raw_site, site, stage

BOUNDS = Bounds(head_seconds=0.5, between_seconds=0.7, idle_seconds=1.0, connect_seconds=1.0, connections=4)
NOBODY = 65534
CONNECTS = """
import os, socket, sys
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(*[int(sys.argv[2])] * 3)
with socket.socket(socket.AF_UNIX) as made:
    try:
        made.connect(sys.argv[1])
    except OSError as error:
        print(type(error).__name__)
        sys.exit()
    try:
        made.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        print(made.recv(12).decode() or "hung up")
    except OSError:
        print("hung up")
"""


@pytest.fixture
async def plain() -> AsyncIterator[Site]:
    async with site() as made:
        yield made


@pytest.fixture
async def sandbox() -> AsyncIterator[Stage]:
    async with stage(bounds=BOUNDS) as made:
        yield made


def get(port: int, host: str = API) -> bytes:
    return f"GET http://{host}:{port}/ HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that every user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def connects(path: Path, uid: int) -> str:
    """What a process of that user gets to see."""
    argv = (sys.executable, "-c", CONNECTS, str(path), str(uid))
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, cwd="/")
    out, _ = await process.communicate()
    return out.decode().strip()


async def test_the_socket_is_for_its_owner_alone(sandbox: Stage) -> None:
    await sandbox.open(API)
    found = sandbox.path.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_uid == os.geteuid()
    assert await connects(sandbox.path, os.geteuid()) == "HTTP/1.1 400"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as somebody else")
async def test_another_user_gets_nowhere(open_folder: Path) -> None:
    path = open_folder / "egress.sock"
    proxy = EgressProxy(open_folder / "authority")
    await proxy.open("cntr_one", policy(API), path, owner_uid=4242)
    assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (4242, 0o600)
    assert await connects(path, 4242) == "HTTP/1.1 400"
    assert await connects(path, NOBODY) == "PermissionError"
    proxy.give("cntr_one", 4243)
    assert await connects(path, 4243) == "HTTP/1.1 400"
    assert await connects(path, 4242) == "PermissionError"
    proxy.give("cntr_one", 4242)
    path.chmod(0o666)  # whatever the file says, who connects is looked at too
    assert await connects(path, NOBODY) == "hung up"
    assert await connects(path, 0) == "hung up"
    assert proxy.decisions.values["refused", "foreign_user"] == 2
    await proxy.close_all()
    assert not path.exists()


async def test_a_long_path_and_a_socket_left_behind_are_no_obstacle(sandbox: Stage, plain: Site) -> None:
    folder = sandbox.directory / ("long" * 30)
    folder.mkdir()
    sandbox.path = folder / "egress.sock"
    held = os.open(folder, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(f"/proc/self/fd/{held}/egress.sock")
    await sandbox.open(f"{API}:{plain.port}")
    with socket.socket(socket.AF_UNIX) as asking:
        asking.settimeout(5)
        asking.connect(f"/proc/self/fd/{held}/egress.sock")
        asking.sendall(get(plain.port))
        said = await asyncio.to_thread(asking.recv, 12)
    os.close(held)
    assert said == b"HTTP/1.1 200"
    await sandbox.proxy.close("cntr_one")
    assert not sandbox.path.exists()
    sandbox.path.write_text("a file of somebody's")
    with pytest.raises(FileExistsError):
        await sandbox.open(API)
    assert sandbox.path.read_text() == "a file of somebody's"


async def test_closing_a_workspace_ends_its_connections_and_no_others(sandbox: Stage, plain: Site) -> None:
    arrived, done = asyncio.Event(), asyncio.Event()

    async def wait(request: web.Request) -> web.Response:
        arrived.set()
        await done.wait()
        return web.Response(text="late")

    plain.answer = wait
    await sandbox.open(f"{API}:{plain.port}")
    second = sandbox.directory / "second.sock"
    await sandbox.proxy.open("cntr_two", policy(f"{API}:{plain.port}"), second)
    first_reader, first_writer = await asyncio.open_unix_connection(str(sandbox.path))
    second_reader, second_writer = await asyncio.open_unix_connection(str(second))
    first_writer.write(get(plain.port))
    second_writer.write(get(plain.port))
    async with asyncio.timeout(5):
        await arrived.wait()
        await sandbox.proxy.close("cntr_one")
        assert await first_reader.read() == b""
        done.set()
        assert b"late" in await second_reader.read()
    assert not sandbox.path.exists()
    first_writer.close()
    second_writer.close()
    await sandbox.proxy.close("cntr_one")


async def test_one_workspace_has_so_many_connections_and_another_still_has_its_own(sandbox: Stage, plain: Site) -> None:
    await sandbox.open(f"{API}:{plain.port}")
    second = sandbox.directory / "second.sock"
    await sandbox.proxy.open("cntr_two", policy(f"{API}:{plain.port}"), second)
    held = [await asyncio.open_unix_connection(str(sandbox.path)) for _ in range(BOUNDS.connections)]
    for _, writer in held:
        writer.write(b"GET http")
    said = await sandbox.ask(get(plain.port))
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b"too many connections" in said
    sandbox.path = second
    assert (await sandbox.ask(get(plain.port))).startswith(b"HTTP/1.1 200 ")
    for _, writer in held:
        writer.close()


async def test_who_sends_a_head_too_slowly_is_hung_up_on(sandbox: Stage) -> None:
    await sandbox.open(API)
    reader, writer = await asyncio.open_unix_connection(str(sandbox.path))
    started = asyncio.get_running_loop().time()

    async def trickle() -> None:
        writer.write(b"GET http://api.example.test/ HTTP/1.1\r\n")
        while True:
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.05)

    trickling = asyncio.create_task(trickle())
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionResetError):  # what trickled in last was not read any more
            assert await reader.read() == b""
    trickling.cancel()
    assert asyncio.get_running_loop().time() - started < 3
    writer.close()


@pytest.mark.parametrize("sent", [b"", b"CONNECT"])
async def test_who_says_nothing_is_hung_up_on(sandbox: Stage, sent: bytes) -> None:
    await sandbox.open(API)
    reader, writer = await asyncio.open_unix_connection(str(sandbox.path))
    writer.write(sent)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_a_head_has_a_bound(sandbox: Stage, plain: Site) -> None:
    await sandbox.open(f"{API}:{plain.port}")
    said = await sandbox.ask(get(plain.port)[:-4] + b"\r\nX: " + b"x" * 300_000 + b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 400 ")
    assert plain.asked == []


async def test_who_hangs_up_lets_go_of_the_server(sandbox: Stage) -> None:
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        with contextlib.suppress(OSError):
            await reader.read()
        gone.set()

    async with raw_site(serve) as port:
        await sandbox.open(f"{API}:{port}")
        _, writer = await asyncio.open_unix_connection(str(sandbox.path))
        writer.write(get(port))
        async with asyncio.timeout(0.9):
            await arrived.wait()
            writer.close()
            await gone.wait()


async def test_a_server_that_is_silent_is_given_up(sandbox: Stage, plain: Site) -> None:
    async def wait(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    plain.answer = wait
    await sandbox.open(f"{API}:{plain.port}")
    said = await sandbox.ask(get(plain.port))
    assert said.startswith(b"HTTP/1.1 502 ")
    assert b"it took too long" in said


async def test_slow_name_servers_hold_up_their_own_workspace_alone(sandbox: Stage, plain: Site) -> None:
    """Its look-ups wait for each other; those of the next do not."""
    answer_now, asked = threading.Event(), threading.Semaphore(0)

    def resolve(host: str, port: int) -> Sequence[str]:
        sandbox.looked_up.append(host)
        if host != API:
            asked.release()
            answer_now.wait(10)
        return ("127.0.0.1",)

    proxy = EgressProxy(sandbox.directory / "b", allow_private=True, bounds=BOUNDS, resolve=resolve)
    second = sandbox.directory / "second.sock"
    await proxy.open("cntr_one", policy("*.slow.test"), sandbox.path)
    await proxy.open("cntr_two", policy(f"{API}:{plain.port}"), second)
    asking = [asyncio.create_task(sandbox.ask(get(80, f"n{at}.slow.test"))) for at in range(3)]
    try:
        for _ in range(2):
            assert await asyncio.to_thread(asked.acquire, timeout=5)
        sandbox.path = second
        assert (await sandbox.ask(get(plain.port))).startswith(b"HTTP/1.1 200 ")
        said = await asyncio.gather(*asking)
        assert all(each.startswith(b"HTTP/1.1 502 ") for each in said)
        assert sandbox.looked_up.count(API) == 1
        assert len(sandbox.looked_up) == 3
    finally:
        answer_now.set()
        await proxy.close_all()


async def test_every_decision_is_told_without_what_was_asked(
    sandbox: Stage, plain: Site, caplog: pytest.LogCaptureFixture
) -> None:
    await sandbox.open(f"{API}:{plain.port}", secrets=[(API, "TOKEN", SECRET)])
    caplog.set_level(logging.INFO, "stateroom.egress")
    head = f"GET http://{API}:{plain.port}/path?query HTTP/1.1\r\nHost: {API}:{plain.port}\r\nConnection: close\r\n"
    await sandbox.ask(f"{head}X: {sandbox.placeholder}\r\n\r\n".encode())
    await sandbox.ask(get(plain.port, OTHER))
    assert sandbox.decisions == [
        ("cntr_one", API, plain.port, True, "listed"),
        ("cntr_one", OTHER, plain.port, False, "not_listed"),
    ]
    assert sandbox.proxy.decisions.values == {("allowed", "listed"): 1, ("refused", "not_listed"): 1}
    assert sandbox.proxy.sent_bytes > 100
    assert sandbox.proxy.received_bytes > 50
    told = [record.getMessage() for record in caplog.records if record.name == "stateroom.egress"]
    line = f"egress.decision workspace=cntr_one host={API} port={plain.port} method=GET allowed=True reason=listed"
    assert line in told
    for private in ("path", "query", SECRET, sandbox.placeholder):
        assert private not in "".join(told)


def test_programs_are_told_of_the_proxy_and_of_secrets_by_their_placeholders(tmp_path: Path) -> None:
    proxy = EgressProxy(tmp_path / "authority")
    assert proxy.environment(None) == {}
    plain = proxy.environment(policy(API))
    assert plain["HTTPS_PROXY"] == plain["https_proxy"] == plain["HTTP_PROXY"] == "http://127.0.0.1:3128"
    assert "localhost" in plain["NO_PROXY"]
    assert "SSL_CERT_FILE" not in plain
    made = policy(API, secrets=[(API, "TOKEN", SECRET)])
    full = proxy.environment(made)
    assert full["TOKEN"] == made.secrets[0].placeholder
    assert full["SSL_CERT_FILE"] == full["GIT_SSL_CAINFO"] == full["PIP_CERT"] == f"{TRUST}/ca-bundle.pem"
    assert SECRET not in str(full)
    assert proxy.mounts(policy(API)) == proxy.mounts(None) == ()
    (mount,) = proxy.mounts(made)
    assert (mount.source, mount.target) == (str(tmp_path / "authority" / "trust"), TRUST)


async def test_what_is_mounted_is_there_when_the_workspace_is_open(sandbox: Stage, tmp_path: Path) -> None:
    await sandbox.open(API, secrets=[(API, "TOKEN", SECRET)])
    (mount,) = sandbox.proxy.mounts(sandbox.policy)
    assert (sandbox.directory / "authority" / "trust" / "ca-bundle.pem").is_file()
    assert mount.source == str(sandbox.directory / "authority" / "trust")


def test_nothing_is_loaded_before_a_workspace_is_opened(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from stateroom.workspaces.egress.proxy import EgressProxy\n"
        f"EgressProxy(Path({str(tmp_path / 'authority')!r}))\n"
        "print([name for name in ('h11', 'cryptography') if name in sys.modules])\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
    assert not (tmp_path / "authority").exists()


def test_it_runs_in_the_loop_of_the_server(tmp_path: Path) -> None:
    """Which is uvloop's: HTTP, TLS that is ended, a tunnel, and an end."""
    uvloop = pytest.importorskip("uvloop")
    roots = Roots(tmp_path)

    async def scene() -> None:
        async with site(roots.server(API, OTHER)) as secure, stage(roots=roots.path) as sandbox:
            await sandbox.open(f"{API}:{secure.port}", f"{OTHER}:{secure.port}", secrets=[(API, "TOKEN", SECRET)])
            code, out, err = await sandbox.python(
                "import os, requests\n"
                f"print(requests.get('https://{API}:{secure.port}/', headers={{'x-a': os.environ['TOKEN']}}).text)\n"
                f"print(requests.put('https://{API}:{secure.port}/', data=b'x' * 3_000_000).status_code)\n"
                f"print(requests.get('https://{OTHER}:{secure.port}/').status_code)\n"
            )
            assert code == 0, err
            assert secure.asked[0][2]["x-a"] == SECRET
            assert SECRET not in out
            assert out.split()[-2:] == ["200", "200"]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scene())
