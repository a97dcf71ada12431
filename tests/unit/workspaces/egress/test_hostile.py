"""What a program in a sandbox may try against its proxy: other hosts, other addresses, two readings of one request."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from aiohttp import web

from stateroom.workspaces.egress.http import Bounds
from stateroom.workspaces.egress.proxy import EgressProxy
from tests.unit.workspaces.egress.stage import API, OTHER, SECRET, Roots, Site, Stage, policy, raw_site, site, stage

BOUNDS = Bounds(head_seconds=0.4, between_seconds=0.6, idle_seconds=1.0, connect_seconds=2.0, connections=8)


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(tmp_path)


@pytest.fixture
async def sandbox(roots: Roots) -> AsyncIterator[Stage]:
    async with stage(roots=roots.path, bounds=BOUNDS) as made:
        yield made


@pytest.fixture
async def plain() -> AsyncIterator[Site]:
    async with site() as made:
        yield made


@pytest.fixture
async def secure(roots: Roots) -> AsyncIterator[Site]:
    async with site(roots.server(API, OTHER)) as made:
        yield made


def hello(host: str | None) -> bytes:
    """The first message of a TLS client."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    out = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=host).do_handshake()
    return out.read()


def get(authority: str) -> str:
    """The beginning of a request."""
    return f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n"


@pytest.mark.parametrize(
    "request_of",
    [
        lambda a: f"{get(a)}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        lambda a: f"{get(a)}Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        lambda a: f"{get(a)}Content-Length: +5\r\n\r\nabcde",
        lambda a: f"{get(a)}Content-Length: 5, 6\r\n\r\nabcde",
        lambda a: f"{get(a)}Transfer-Encoding: identity\r\n\r\nabcde",
        lambda a: f"{get(a)}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        lambda a: f"{get(a)}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        lambda a: f"{get(a)}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        lambda a: f"GET http://{a}/ HTTP/1.0\r\nHost: {a}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        lambda a: f"GET http://{a}/ HTTP/1.1\r\nHost: {a}\r\nHost: {a}\r\n\r\n",
        lambda a: f"GET http://{a}/ HTTP/1.1\r\nX: y\r\n\r\n",
        lambda a: f"{get(a)}X\0: y\r\n\r\n",
        lambda a: f"{get(a)}X: a\rb\r\n\r\n",
        lambda a: f"GET http://{a}/ x HTTP/1.1\r\nHost: {a}\r\n\r\n",
        lambda a: f"GET http://user@{a}/ HTTP/1.1\r\nHost: {a}\r\n\r\n",
        lambda a: f"GET http://{a}\\@{OTHER}/ HTTP/1.1\r\nHost: {a}\r\n\r\n",
        lambda a: f"GET https://{a}/ HTTP/1.1\r\nHost: {a}\r\n\r\n",
        lambda a: f"GET / HTTP/1.1\r\nHost: {a}\r\n\r\n",
        lambda a: f"TRACE http://{a}/ HTTP/1.1\r\nHost: {a}\r\n\r\n",
        lambda a: f"CONNECT {a} HTTP/1.1\r\nHost: {a}\r\nContent-Length: 4\r\n\r\nabcd",
        lambda a: f"CONNECT {API} HTTP/1.1\r\nHost: {API}\r\n\r\n",
        lambda a: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        lambda a: "\x16\x03\x01\x02\x00\x01\x00",
    ],
)  # fmt: skip
async def test_what_could_be_read_in_two_ways_is_refused(
    sandbox: Stage, plain: Site, request_of: Callable[[str], str]
) -> None:
    await sandbox.open(f"{API}:{plain.port}")
    said = await sandbox.ask(request_of(f"{API}:{plain.port}").encode("latin-1"))
    assert said.startswith(b"HTTP/1.1 400 "), said
    assert plain.asked == []
    assert "listed" not in sandbox.reasons()


async def test_a_body_that_holds_a_request_stays_a_body(sandbox: Stage, plain: Site) -> None:
    await sandbox.open(f"{API}:{plain.port}")
    authority = f"{API}:{plain.port}"
    smuggled = f"GET http://{authority}/smuggled HTTP/1.1\r\nHost: {authority}\r\n\r\n"
    head = f"POST http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n"
    chunked = (
        f"{head}Transfer-Encoding: chunked\r\n\r\n{len(smuggled):x};a=b\r\n{smuggled}\r\n0\r\nX-Trailer: 1\r\n\r\n"
    )
    await sandbox.ask(f"{head}Content-Length: {len(smuggled)}\r\n\r\n{smuggled}".encode())
    await sandbox.ask(chunked.encode())
    assert [(method, path) for method, path, _, _ in plain.asked] == [("POST", "/")] * 2
    assert all(body == smuggled.encode() for _, _, _, body in plain.asked)


async def test_headers_for_the_proxy_stay_here(sandbox: Stage, plain: Site) -> None:
    await sandbox.open(f"{API}:{plain.port}")
    authority = f"{API}:{plain.port}"
    await sandbox.ask(
        f"GET HTTP://{authority.upper()}?q HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Basic eA==\r\n"
        "Proxy-Connection: keep-alive\r\nProxy-Whatever: 1\r\nConnection: close, X-Mine, Host\r\nX-Mine: 1\r\n"
        "TE: trailers\r\nKeep-Alive: 5\r\nUpgrade: h2c\r\nX-Kept: 1\r\n\r\n".encode()
    )
    method, path, headers, _ = plain.asked[-1]
    assert (method, path) == ("GET", "/?q")
    assert headers == {"host": authority, "x-kept": "1"}


@pytest.mark.parametrize("host", [OTHER, f"{OTHER}:{{port}}", f"{API}:1", f"{API}", "127.0.0.1:{port}", "["])
async def test_the_host_header_names_the_host_of_the_url(sandbox: Stage, plain: Site, host: str) -> None:
    await sandbox.open(f"{API}:{plain.port}", f"{OTHER}:{plain.port}")
    named = host.format(port=plain.port)
    said = await sandbox.ask(f"GET http://{API}:{plain.port}/ HTTP/1.1\r\nHost: {named}\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 403 ")
    said = await sandbox.ask(f"CONNECT {API}:{plain.port} HTTP/1.1\r\nHost: {OTHER}:9\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 403 ")
    assert plain.asked == []
    assert sandbox.reasons() == ["host_mismatch"] * 2


@pytest.mark.parametrize("with_secret", [True, False])
@pytest.mark.parametrize("named", [OTHER, "api.example.test.evil.test", None])
async def test_tls_names_the_host_of_the_tunnel(
    sandbox: Stage, secure: Site, named: str | None, with_secret: bool
) -> None:
    secrets = [(API, "TOKEN", SECRET)] if with_secret else []
    await sandbox.open(f"{API}:{secure.port}", f"{OTHER}:{secure.port}", secrets=secrets)
    reader, writer, head = await sandbox.connect(f"{API}:{secure.port}")
    assert head.startswith(b"HTTP/1.1 200 ")
    writer.write(hello(named))
    async with asyncio.timeout(5):
        said = await reader.read()
    assert said == b"\x15\x03\x03\x00\x02\x02\x70"  # unrecognised name
    writer.close()
    assert sandbox.reasons() == ["listed", "sni_mismatch"]


async def test_requests_inside_a_tunnel_are_for_its_host(sandbox: Stage, secure: Site) -> None:
    await sandbox.open(f"{API}:{secure.port}", f"{OTHER}:{secure.port}", secrets=[(API, "TOKEN", SECRET)])
    code, out, err = await sandbox.python(
        "import requests\n"
        f"url = 'https://{API}:{secure.port}/'\n"
        f"print(requests.get(url, headers={{'Host': '{OTHER}'}}).status_code)\n"
        f"print(requests.request('CONNECT', url).status_code)\n"
    )
    assert code == 0, err
    assert out.split() == ["403", "400"]
    assert secure.asked == []


async def test_a_placeholder_stays_one_on_the_way_to_another_domain(sandbox: Stage, secure: Site, plain: Site) -> None:
    secrets = [(API, "TOKEN", SECRET), (OTHER, "OTHER", "another secret")]
    await sandbox.open(f"{API}:{secure.port}", f"{OTHER}:{secure.port}", f"{OTHER}:{plain.port}", secrets=secrets)
    code, _, err = await sandbox.python(
        "import os, requests\n"
        "token, other = os.environ['TOKEN'], os.environ['OTHER']\n"
        f"for url in ('https://{OTHER}:{secure.port}/', 'http://{OTHER}:{plain.port}/'):\n"
        "    requests.get(url, headers={'Authorization': 'Bearer ' + token, 'X-Other': other}, auth=None)\n"
        "    requests.get(url, auth=(token, other))\n"
    )
    assert code == 0, err
    assert len(secure.asked + plain.asked) == 4
    for _, _, headers, _ in secure.asked + plain.asked:
        assert SECRET not in str(headers)
        given = headers["authorization"].removeprefix("Basic ")
        if given == headers["authorization"]:
            assert given == f"Bearer {sandbox.placeholder}"
            assert headers["x-other"] == "another secret"
        else:
            assert base64.b64decode(given).decode() == f"{sandbox.placeholder}:another secret"


async def test_a_secret_is_put_neither_into_bodies_nor_into_urls(sandbox: Stage, plain: Site) -> None:
    await sandbox.open(f"{API}:{plain.port}", secrets=[(API, "TOKEN", SECRET)])
    code, _, err = await sandbox.python(
        "import os, requests\n"
        f"requests.post('http://{API}:{plain.port}/' + os.environ['TOKEN'], data=os.environ['TOKEN'])\n"
    )
    assert code == 0, err
    assert plain.asked[0][1] == f"/{sandbox.placeholder}"
    assert plain.asked[0][3].decode() == sandbox.placeholder


async def test_a_secret_does_not_come_back_in_pieces(sandbox: Stage, secure: Site) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        assert "range" not in request.headers
        answer = web.StreamResponse(headers={"x-echo": f"<{SECRET}>", "etag": '"a"', "accept-ranges": "bytes"})
        await answer.prepare(request)
        for letter in f"before {SECRET} after":
            await answer.write(letter.encode())
            await asyncio.sleep(0)
        return answer

    secure.answer = drip
    await sandbox.open(f"{API}:{secure.port}", secrets=[(API, "TOKEN", SECRET)])
    url = f"https://{API}:{secure.port}/"
    code, out, err = await sandbox.run("curl", "-sSi", "-H", "Range: bytes=0-9", url)
    assert code == 0, err
    assert SECRET not in out
    assert f"before {sandbox.placeholder} after" in out
    assert f"<{sandbox.placeholder}>" in out


async def test_an_answer_that_cannot_be_searched_is_refused(sandbox: Stage, secure: Site) -> None:
    async def squeeze(request: web.Request) -> web.Response:
        return web.Response(body=b"whatever", headers={"content-encoding": "gzip"})

    secure.answer = squeeze
    await sandbox.open(f"{API}:{secure.port}", secrets=[(API, "TOKEN", SECRET)])
    url = f"https://{API}:{secure.port}/"
    _, out, _ = await sandbox.run("curl", "-sS", "-w", "%{http_code}", url)
    assert "cannot be searched for secrets" in out
    assert out.endswith("502")


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fd00:ec2::254", "100.64.0.1"])
async def test_no_name_leads_to_a_private_address(roots: Roots, plain: Site, address: str) -> None:
    async with stage(roots=roots.path, bounds=BOUNDS, allow_private=False) as sandbox:
        sandbox.names[API] = ("93.184.216.34", address)
        written = f"[{address}]" if ":" in address else address
        await sandbox.open(f"{API}:{plain.port}", f"{written}:{plain.port}", secrets=[(API, "TOKEN", SECRET)])
        for host in (API, written):
            authority = f"{host}:{plain.port}"
            said = await sandbox.ask(f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            assert said.startswith(b"HTTP/1.1 403 ")
            assert b"is a private, loopback, link-local or metadata address" in said
            _, writer, head = await sandbox.connect(authority)
            assert head.startswith(b"HTTP/1.1 403 ")
            writer.close()
    assert set(sandbox.reasons()) == {"private_address"}
    assert plain.asked == []


async def test_where_tls_is_spoken_nothing_goes_out_in_clear(sandbox: Stage) -> None:
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(65_536))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    try:
        server = await asyncio.start_server(listen, "127.0.0.77", 443)
    except OSError as error:
        pytest.skip(f"nobody may listen there: {error}")
    async with server:
        sandbox.names[API] = ("127.0.0.77",)
        await sandbox.open(f"{API}:443", secrets=[(API, "TOKEN", SECRET)])
        request = f"GET {{}} HTTP/1.1\r\nHost: {API}:443\r\nX-Key: {sandbox.placeholder}\r\n"
        request += "Connection: close\r\n\r\n"
        said = await sandbox.ask(request.format(f"http://{API}:443/").encode())
        assert said.startswith(b"HTTP/1.1 403 ")
        reader, writer, head = await sandbox.connect(f"{API}:443")
        assert head.startswith(b"HTTP/1.1 200 ")
        writer.write(request.format("/").encode())
        assert (await reader.read(100)).startswith(b"HTTP/1.1 403 ")
        writer.close()
    assert sandbox.reasons()[-1] == "not_tls"
    assert heard == []


OWN = """
import asyncio
from stateroom.workspaces.egress.dial import Dialer, PrivateAddress, lookup_turns
from stateroom.workspaces.egress.domains import Target

async def tried(address):
    dialer = Dialer(allow_private=False, connect_seconds=5, resolve=lambda host, port: [address])
    try:
        return str(await dialer.addresses(Target("a.test", 443), lookup_turns()))
    except PrivateAddress:
        return "refused"
    finally:
        dialer.close()

for address in ("93.184.216.34", "2606:2800:220::34", "93.184.216.35"):
    print(asyncio.run(tried(address)))
"""


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="it takes a network of its own")
def test_a_public_address_of_this_machine_is_no_way_past_its_firewall() -> None:
    public = "ip link set lo up && ip addr add 93.184.216.34/32 dev lo && ip addr add 2606:2800:220::34/128 dev lo"
    command = f'{public} && ip route add default dev lo && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", command, sys.executable, OWN], capture_output=True, text=True, check=False
    )
    if "ip" in done.stderr and done.returncode:
        pytest.skip(f"no network of its own can be made here: {done.stderr}")
    assert done.stdout == "refused\nrefused\n['93.184.216.35']\n", done.stderr


async def test_what_was_checked_is_connected_to_and_no_name_is_looked_up_again(sandbox: Stage, plain: Site) -> None:
    answers = iter([("127.0.0.1",), ("127.99.99.99",)])

    def rebind(host: str, port: int) -> Sequence[str]:
        return next(answers)

    proxy = EgressProxy(sandbox.directory / "b", allow_private=True, resolve=rebind, bounds=BOUNDS)
    await proxy.open("cntr_one", policy(f"{API}:{plain.port}"), sandbox.path)
    authority = f"{API}:{plain.port}"
    request = f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n".encode()
    assert (await sandbox.ask(request)).startswith(b"HTTP/1.1 200 ")
    assert len(plain.asked) == 1
    assert next(answers) == ("127.99.99.99",)
    await proxy.close_all()


async def test_a_name_that_leads_elsewhere_the_next_time_is_checked_again(roots: Roots, plain: Site) -> None:
    async with stage(roots=roots.path, bounds=BOUNDS, allow_private=False) as sandbox:
        await sandbox.open(f"{API}:{plain.port}")
        authority = f"{API}:{plain.port}"
        request = f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()
        for address in ("127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "0.0.0.0", "168.63.129.16"):
            sandbox.names[API] = (address,)
            assert (await sandbox.ask(request)).startswith(b"HTTP/1.1 403 ")
    assert sandbox.reasons() == ["private_address"] * 5
    assert sandbox.looked_up == [API] * 5
    assert plain.asked == []


async def test_an_address_is_reached_only_when_it_is_listed(sandbox: Stage, plain: Site) -> None:
    await sandbox.open(f"{API}:{plain.port}")
    authority = f"127.0.0.1:{plain.port}"
    request = f"GET http://{authority}/ HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n".encode()
    assert (await sandbox.ask(request)).startswith(b"HTTP/1.1 403 ")
    await sandbox.proxy.change("cntr_one", policy(authority))
    assert (await sandbox.ask(request)).startswith(b"HTTP/1.1 200 ")


async def test_a_server_that_is_not_who_it_says_is_not_spoken_to(roots: Roots, tmp_path: Path) -> None:
    (tmp_path / "others").mkdir()
    async with site(Roots(tmp_path / "others").server(API)) as impostor, stage(roots=roots.path) as sandbox:
        await sandbox.open(f"{API}:{impostor.port}", secrets=[(API, "TOKEN", SECRET)])
        url = f"https://{API}:{impostor.port}/"
        header = f"Authorization: Bearer {sandbox.placeholder}"
        _, out, _ = await sandbox.run("curl", "-sS", "-w", "%{http_code}", "-H", header, url)
        assert out.endswith("502")
        assert "its certificate is not trusted" in out
        assert impostor.asked == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", b"HTTP/1.1 502 "),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", b"HTTP/1.1 502 "),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", b"HTTP/1.1 502 "),
        (b"HTTP/1.1 103 Early\r\n\r\n" * 17, b"HTTP/1.1 103 "),
        (b"nonsense\r\n\r\n", b"HTTP/1.1 502 "),
        (b"", b"HTTP/1.1 502 "),
    ],
)
async def test_a_server_that_answers_nonsense_is_told_of(sandbox: Stage, answer: bytes, said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with raw_site(serve) as port:
        await sandbox.open(f"{API}:{port}")
        request = f"GET http://{API}:{port}/ HTTP/1.1\r\nHost: {API}:{port}\r\n\r\n"
        got = await sandbox.ask(request.encode())
        assert got.startswith(said)
        assert b"HTTP/1.1 502 " in got
        assert "broken" in sandbox.reasons()


async def test_what_a_server_says_too_much_answers_no_other_request(sandbox: Stage) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrueHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfalse"
            )
            await writer.drain()

    async with raw_site(serve) as port:
        await sandbox.open(f"{API}:{port}")
        request = f"GET http://{API}:{port}/ HTTP/1.1\r\nHost: {API}:{port}\r\n\r\n"
        got = await sandbox.ask(request.encode() * 2)
        assert got.count(b"\r\n\r\ntrue") == 2
        assert b"false" not in got
