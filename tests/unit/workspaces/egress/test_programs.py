"""Programs of a sandbox and its proxy: curl, Python, requests, over HTTP and HTTPS, with secrets and without."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.unit.workspaces.egress.stage import API, OTHER, SECRET, Roots, Site, Stage, raw_site, site, stage

URLLIB = """
import os, urllib.request
request = urllib.request.Request({url!r}, headers={{"Authorization": "Bearer " + os.environ["TOKEN"]}})
with urllib.request.urlopen(request) as answer:
    print(answer.headers)
    print(answer.read().decode())
"""
REQUESTS = """
import os, requests
session = requests.Session()
for _ in range(3):
    answer = session.get({url!r}, headers={{"Authorization": "Bearer " + os.environ["TOKEN"]}})
    print(answer.headers, answer.text)
print(session.get({url!r}, auth=("user", os.environ["TOKEN"])).text)
"""


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path)


@pytest.fixture
async def secure(roots: Roots) -> AsyncIterator[Site]:
    async with site(roots.server(API, OTHER)) as made:
        yield made


@pytest.fixture
async def plain() -> AsyncIterator[Site]:
    async with site() as made:
        yield made


@pytest.fixture
async def sandbox(roots: Roots) -> AsyncIterator[Stage]:
    async with stage(roots=roots.path) as made:
        yield made


@pytest.mark.parametrize("program", [URLLIB, REQUESTS], ids=["urllib", "requests"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_python_uses_a_secret_it_never_sees(
    sandbox: Stage, secure: Site, plain: Site, scheme: str, program: str
) -> None:
    server = secure if scheme == "https" else plain
    await sandbox.open(f"{API}:{server.port}", secrets=[(API, "TOKEN", SECRET)])
    code, out, err = await sandbox.python(program.format(url=f"{scheme}://{API}:{server.port}/a?b=c"))
    assert code == 0, err
    assert server.asked[0][2]["authorization"] == f"Bearer {SECRET}"
    assert server.asked[0][:2] == ("GET", "/a?b=c")
    assert sandbox.placeholder in out
    for seen in (out, err, sandbox.received.decode("latin-1"), json.dumps(sandbox.environment())):
        assert SECRET not in seen
        assert json.dumps(SECRET)[1:-1] not in seen
        assert base64.b64encode(f"user:{SECRET}".encode()).decode() not in seen
    assert set(sandbox.reasons()) == {"listed"}
    assert sandbox.proxy.connections >= 0


async def test_a_secret_is_put_into_basic_authorization(sandbox: Stage, secure: Site) -> None:
    await sandbox.open(f"{API}:{secure.port}", secrets=[(API, "TOKEN", SECRET)])
    code, _, err = await sandbox.python(REQUESTS.format(url=f"https://{API}:{secure.port}/"))
    assert code == 0, err
    sent = base64.b64encode(f"user:{SECRET}".encode()).decode()
    assert secure.header("authorization") == f"Basic {sent}"


async def test_requests_of_one_program_share_a_connection(sandbox: Stage, secure: Site) -> None:
    connections = set()

    async def remember(request: web.Request) -> web.Response:
        assert request.transport is not None
        connections.add(request.transport.get_extra_info("peername"))
        return web.Response(text="well")

    secure.answer = remember
    await sandbox.open(f"{API}:{secure.port}", secrets=[(API, "TOKEN", SECRET)])
    code, _, err = await sandbox.python(REQUESTS.format(url=f"https://{API}:{secure.port}/"))
    assert code == 0, err
    assert len(secure.asked) == 4
    assert len(connections) < 4


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_uses_a_secret_it_never_sees(sandbox: Stage, secure: Site) -> None:
    await sandbox.open(f"{API}:{secure.port}", secrets=[(API, "TOKEN", SECRET)])
    header = f"X-Api-Key: {sandbox.placeholder}"
    argv = ("curl", "-sSv", "--compressed", "-H", header, "-d", "some=body", f"https://{API}:{secure.port}/")
    code, out, err = await sandbox.run(*argv)
    assert code == 0, err
    assert secure.header("x-api-key") == SECRET
    assert secure.header("accept-encoding") == "identity"
    assert secure.asked[-1][3] == b"some=body"
    assert json.loads(out)["headers"]["x-api-key"] == sandbox.placeholder
    assert SECRET not in out + err


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_reaches_a_host_without_secrets_through_a_tunnel(sandbox: Stage, secure: Site, roots: Roots) -> None:
    await sandbox.open(f"{OTHER}:{secure.port}")
    url = f"https://{OTHER}:{secure.port}/"
    code, out, err = await sandbox.run("curl", "-sSv", "--cacert", str(roots.path), url)
    assert code == 0, err
    assert "Test roots" in err
    assert json.loads(out)["headers"]["host"] == f"{OTHER}:{secure.port}"
    assert not (sandbox.directory / "authority").exists()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_a_refusal_says_what_to_do(sandbox: Stage, plain: Site) -> None:
    await sandbox.open(f"{API}:{plain.port}")
    code, out, _ = await sandbox.run("curl", "-sS", "-w", "%{http_code}", f"http://{OTHER}:{plain.port}/")
    assert code == 0
    assert out.endswith("403")
    assert f"{OTHER} is not in the allowed_domains" in out
    assert f"Allowed: {API}:{plain.port}" in out
    assert "ask the user" in out
    code, _, err = await sandbox.python(f"import urllib.request; urllib.request.urlopen('https://{OTHER}/')")
    assert code != 0
    assert f"{OTHER} is not in the allowed_domains" in err
    assert plain.asked == []
    assert sandbox.looked_up == []


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_a_redirect_leads_nowhere_that_is_not_allowed(roots: Roots, plain: Site) -> None:
    async def away(request: web.Request) -> web.Response:
        raise web.HTTPFound("http://169.254.169.254/latest/meta-data/")

    plain.answer = away
    async with stage(roots=roots.path) as sandbox:
        await sandbox.open(f"{API}:{plain.port}")
        _, out, _ = await sandbox.run("curl", "-sSL", "-w", "%{http_code}", f"http://{API}:{plain.port}/")
        assert out.endswith("403")
        assert sandbox.decisions[-1][1:] == ("169.254.169.254", 80, False, "not_listed")


async def test_what_is_uploaded_arrives(sandbox: Stage, secure: Site) -> None:
    await sandbox.open(f"{API}:{secure.port}", secrets=[(API, "TOKEN", SECRET)])
    code, out, err = await sandbox.python(
        "import requests\n"
        f"url = 'https://{API}:{secure.port}/'\n"
        "data = b'0123456789abcdef' * 100_000\n"
        "print(len(requests.put(url, data=data).json()['body']))\n"
        "print(len(requests.put(url, data=(data[at:at + 7777] for at in range(0, len(data), 7777))).json()['body']))\n"
    )
    assert code == 0, err
    assert out.split() == ["1600000", "1600000"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("with_secret", [True, False])
@pytest.mark.parametrize(
    "options",
    [("-0",), ("-I",), ("-H", "Expect: 100-continue", "-d", "x" * 2000), ("-X", "OPTIONS"), ("--http2",), ("-p",)],
    ids=lambda options: options[0],
)
async def test_curl_asks_in_all_its_ways(
    sandbox: Stage, plain: Site, options: tuple[str, ...], with_secret: bool
) -> None:
    await sandbox.open(f"{API}:{plain.port}", secrets=[(API, "TOKEN", SECRET)] if with_secret else [])
    code, out, err = await sandbox.run("curl", "-sSi", "-m", "5", *options, f"http://{API}:{plain.port}/")
    assert code == 0, err
    assert "200 OK" in out
    assert "x-seen: yes" in out.lower()
    assert len(plain.asked) == 1
    assert len(plain.asked[0][3]) == (2000 if "-d" in options else 0)


async def test_an_answer_that_ends_with_its_connection_is_passed_on(sandbox: Stage) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\n\r\nto the end")
        await writer.drain()

    async with raw_site(serve) as port:
        await sandbox.open(f"{API}:{port}")
        code, out, err = await sandbox.python(
            f"import requests; answer = requests.get('http://{API}:{port}/'); print(answer.text, dict(answer.cookies))"
        )
        assert code == 0, err
        assert out.strip() == "to the end {'a': '1', 'b': '2'}"


async def test_a_server_that_wants_no_more_is_heard(sandbox: Stage) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 6\r\nConnection: close\r\n\r\nenough")
        await writer.drain()
        while await reader.read(100_000):  # as servers do: hanging up at once could take the answer back
            pass

    async with raw_site(serve) as port:
        await sandbox.open(f"{API}:{port}")
        head = f"PUT http://{API}:{port}/ HTTP/1.1\r\nHost: {API}:{port}\r\nContent-Length: 9000000\r\n\r\n"
        said = await sandbox.ask(head.encode() + b"x" * 500_000)
        assert said.startswith(b"HTTP/1.1 413 ")
        assert said.endswith(b"enough")


async def test_what_a_server_streams_arrives_at_once(sandbox: Stage, plain: Site) -> None:
    go_on = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        await answer.write(b"data: one\n\n")
        await go_on.wait()
        await answer.write(b"data: two\n\n")
        return answer

    plain.answer = stream
    await sandbox.open(f"{API}:{plain.port}", secrets=[(API, "TOKEN", SECRET)])
    reader, writer = await asyncio.open_unix_connection(str(sandbox.path))
    head = f"GET http://{API}:{plain.port}/ HTTP/1.1\r\nHost: {API}:{plain.port}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    async with asyncio.timeout(5):
        await reader.readuntil(b"data: one\n\n")
        go_on.set()
        assert b"data: two\n\n" in await reader.read()
    writer.close()
