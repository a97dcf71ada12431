"""Tunnels: what may be spoken on which port, web sockets, and ports that a policy names."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from stateroom.workspaces.egress.http import Bounds
from tests.unit.workspaces.egress.stage import API, OTHER, SECRET, Roots, Site, Stage, policy, raw_site, site, stage
from tests.unit.workspaces.egress.test_hostile import hello

HERE = "127.0.44.3"
"""An address of this machine on which nobody else listens."""
BOUNDS = Bounds(head_seconds=2.0, between_seconds=1.0, idle_seconds=2.0, connect_seconds=2.0)


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path)


@pytest.fixture
async def sandbox(roots: Roots) -> AsyncIterator[Stage]:
    async with stage(roots=roots.path, bounds=BOUNDS) as made:
        made.names[API] = made.names[OTHER] = (HERE,)
        yield made


def may_bind(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HERE, port))
        except OSError:
            return False
        return True


@pytest.fixture
async def web_ports(roots: Roots) -> AsyncIterator[tuple[Site, Site]]:
    """Servers on the ports 80 and 443 themselves."""
    if not may_bind(80) or not may_bind(443):
        pytest.skip("this user may not listen on the ports of the web")
    async with site(host=HERE, port=80) as plain, site(roots.server(API, OTHER), HERE, 443) as secure:
        yield plain, secure


async def socket_site(request: web.Request) -> web.WebSocketResponse:
    """Says what it was asked with, then everything back."""
    made = web.WebSocketResponse()
    await made.prepare(request)
    await made.send_str(request.headers.get("Authorization", "none"))
    async for message in made:
        if message.type == aiohttp.WSMsgType.TEXT:
            await made.send_str(f"{message.data}")
    return made


async def test_the_ports_of_the_web_carry_http_and_tls_alone(
    sandbox: Stage, web_ports: tuple[Site, Site], roots: Roots
) -> None:
    plain, secure = web_ports
    await sandbox.open(API)
    code, out, err = await sandbox.run(
        "curl", "-sS", "--cacert", str(roots.path), f"https://{API}/x", f"http://{API}/y"
    )
    assert code == 0, err
    code, out, err = await sandbox.run("curl", "-sSp", f"http://{API}/tunnelled")
    assert code == 0, err
    assert [asked[1] for asked in plain.asked] == ["/y", "/tunnelled"]
    assert [asked[1] for asked in secure.asked] == ["/x"]
    code, out, err = await sandbox.run("curl", "-sSp", "-H", f"Host: {OTHER}", f"http://{API}/tunnelled")
    assert "the Host header names another host" in out
    assert len(plain.asked) == 2

    reader, writer, head = await sandbox.connect(f"{API}:443")
    assert head.startswith(b"HTTP/1.1 200 ")
    writer.write(b"SSH-2.0-anything\r\n")
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    assert sandbox.reasons()[-1] == "not_tls"


async def test_only_listed_ports_are_reached(sandbox: Stage) -> None:
    await sandbox.open(API, f"{OTHER}:5432")
    for authority, reason in ((f"{API}:22", "port_not_listed"), (f"{OTHER}:443", "port_not_listed")):
        _, writer, head = await sandbox.connect(authority)
        assert head.startswith(b"HTTP/1.1 403 port ")
        writer.close()
        assert sandbox.reasons()[-1] == reason


@pytest.mark.parametrize("first", ["server", "client"])
async def test_a_port_that_is_named_carries_anything(sandbox: Stage, first: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if first == "server":
            writer.write(b"220 hello\n")
        line = await reader.readline()
        writer.write(b"you said " + line)
        await writer.drain()
        assert await reader.read() == b"the end"
        writer.write(b"bye\n")
        await writer.drain()

    sandbox.names[API] = ("127.0.0.1",)
    async with raw_site(serve) as port:
        await sandbox.open(f"{API}:{port}")
        reader, writer, _ = await sandbox.connect(f"{API}:{port}")
        async with asyncio.timeout(5):
            if first == "server":
                assert await reader.readline() == b"220 hello\n"
            writer.write(b"something\n")
            assert await reader.readline() == b"you said something\n"
            writer.write(b"the end")
            writer.write_eof()
            assert await reader.read() == b"bye\n"
        writer.close()


@pytest.mark.parametrize("scheme", ["ws", "wss"])
@pytest.mark.parametrize("with_secret", [True, False])
async def test_web_sockets_pass(roots: Roots, scheme: str, with_secret: bool) -> None:
    """Through the proxy of HTTP, a tunnel, or TLS that is ended; a secret in their bytes is blotted out."""
    secure = scheme == "wss"
    async with site(roots.server(API) if secure else None) as server, stage(roots=roots.path) as sandbox:
        server.answer = socket_site
        listener = await sandbox.open(f"{API}:{server.port}", secrets=[(API, "TOKEN", SECRET)] if with_secret else [])
        bundle = sandbox.directory / "authority" / "trust" / "ca-bundle.pem" if with_secret else roots.path
        token = sandbox.placeholder if with_secret else "nothing"
        code = (
            "import asyncio, aiohttp, ssl\n"
            "async def main():\n"
            f"    context = ssl.create_default_context(cafile={str(bundle)!r}) if {secure} else None\n"
            "    async with aiohttp.ClientSession() as session:\n"
            f"        async with session.ws_connect('{scheme}://{API}:{server.port}/', compress=15,\n"
            f"                ssl=context or True, proxy='http://127.0.0.1:{sandbox.bridge_port}',\n"
            f"                headers={{'Authorization': 'Bearer {token}'}}) as ws:\n"
            "            print(await ws.receive_str())\n"
            "            for text in ('one', 'x' * 100_000):\n"
            "                await ws.send_str(text)\n"
            "                print(len(await ws.receive_str()))\n"
            "asyncio.run(main())\n"
        )
        status, out, err = await sandbox.python(code)
        assert status == 0, err
        assert out.split("\n")[0] == f"Bearer {'*' * len(SECRET)}" if with_secret else "Bearer nothing"
        assert out.split()[-2:] == ["3", "100000"]
        seen = server.asked[0][2]
        assert seen["authorization"] == f"Bearer {SECRET}" if with_secret else "Bearer nothing"
        assert SECRET.encode() not in sandbox.received
        assert listener.connections <= 1


async def test_a_tunnel_ends_when_its_host_is_no_longer_listed(roots: Roots) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        await reader.read()

    async with raw_site(serve) as port, stage(roots=roots.path) as sandbox:
        await sandbox.open(f"{API}:{port}", f"{OTHER}:{port}")
        tunnels = [await sandbox.connect(f"{host}:{port}") for host in (API, OTHER)]
        async with asyncio.timeout(5):
            for reader, _, _ in tunnels:
                assert await reader.readline() == b"hello\n"
            await sandbox.proxy.change("cntr_one", policy(f"{OTHER}:{port}"))
            assert await tunnels[0][0].read() == b""
        assert sandbox.proxy.connections == 1
        for _, writer, _ in tunnels:
            writer.close()


async def test_a_tunnel_passes_the_first_message_of_tls_in_pieces(sandbox: Stage) -> None:
    got = asyncio.Queue[bytes]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.put_nowait(await reader.readexactly(len(sent)))

    sandbox.names[API] = ("127.0.0.1",)
    sent = hello(API)
    async with raw_site(serve) as port:
        await sandbox.open(f"{API}:{port}")
        _, writer, _ = await sandbox.connect(f"{API}:{port}")
        for at in range(0, len(sent), 100):
            writer.write(sent[at : at + 100])
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            assert await got.get() == sent
        writer.close()
