"""The guard of users' URLs: where it lets the server connect, and every way around it that is known."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.access import outbound
from stateroom.access.outbound import OutboundGuard
from stateroom.errors import InvalidRequest

GUARD = OutboundGuard(allow_private=False, bytes_max=1_000, timeout_seconds=2.0)

FORBIDDEN_V4 = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
]
FORBIDDEN_V6 = [
    "::/128",
    "::1/128",
    "::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/32",
    "2001:db8::/32",
    "4000::/3",
    "8000::/1",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001::200e"]


def inside(networks: list[str]) -> st.SearchStrategy[Any]:
    return st.sampled_from(networks).flatmap(lambda text: st.ip_addresses(network=text))


def wrapped(address: ipaddress.IPv4Address) -> list[ipaddress.IPv6Address]:
    """The IPv6 addresses that lead to an IPv4 one."""
    number = int(address)
    return [
        ipaddress.IPv6Address(0xFFFF << 32 | number),
        ipaddress.IPv6Address(0x2002 << 112 | number << 80 | 1),
        ipaddress.IPv6Address(int(ipaddress.IPv6Address("64:ff9b::")) | number),
    ]


@given(inside(FORBIDDEN_V4))
def test_no_address_of_a_forbidden_network_is_permitted_in_whatever_dress(address: ipaddress.IPv4Address) -> None:
    for dressed in (address, *wrapped(address)):
        assert not GUARD.permits(str(dressed))
        assert not GUARD.permits(dressed.exploded)


@given(inside(FORBIDDEN_V6))
def test_no_address_of_a_forbidden_ipv6_network_is_permitted(address: ipaddress.IPv6Address) -> None:
    assert not GUARD.permits(str(address))
    assert not GUARD.permits(f"{address}%eth0")


@given(st.ip_addresses())
def test_what_is_permitted_is_public_unicast(address: Any) -> None:
    if GUARD.permits(str(address)):
        assert address.is_global
        assert not address.is_multicast
        assert not address.is_loopback
        assert not address.is_link_local
    assert OutboundGuard(allow_private=True, bytes_max=1, timeout_seconds=1).permits(str(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_permitted_in_whatever_dress(address: str) -> None:
    assert GUARD.permits(address)
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv4Address):
        assert all(GUARD.permits(str(dressed)) for dressed in wrapped(parsed))


@pytest.mark.parametrize("address", ["", "127.1", "2130706433", "0x7f.1", "localhost", "1.1.1.1.1", "::g"])
def test_what_is_no_address_is_not_permitted(address: str) -> None:
    assert not GUARD.permits(address)


Answer = Callable[[str], bytes]


@asynccontextmanager
async def serving(answer: Answer, *, host: str = "127.0.0.1") -> AsyncIterator[tuple[int, list[str]]]:
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        asked.append(head)
        writer.write(answer(head))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, host, 0)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()


def found(_: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 3\r\n\r\nPNG"


async def code_of(url: str, guard: OutboundGuard = GUARD) -> str:
    with pytest.raises(InvalidRequest) as refused:
        await guard.fetch(url, param="input[0]", accept="image/*")
    assert refused.value.param == "input[0]"
    assert len(refused.value.message) < 400
    return refused.value.code


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.1.",
        "127\u30020\u30020\u30021",
        "\uff11\uff12\uff17.0.0.1",
        "\u2460\u2461\u2466.0.0.1",
        "127.0.0.1%00",
        "127.0.0.1%2f.example.com",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "0.0.0.0",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[0:0:0:0:0:ffff:127.0.0.1]",
        "[fe80::1%25lo]",
        "[::1%25lo]",
        "a@127.0.0.1",
        "example.com\\@127.0.0.1",
        "127.0.0.1#@example.com",
        "example.com:80@127.0.0.1",
    ],
)
async def test_no_spelling_of_this_machine_is_connected_to(host: str) -> None:
    async with serving(found) as (port, asked):
        for text in (f"http://{host}:{port}/x", f"http://{host}/x"):
            assert await code_of(text) in ("private_address_refused", "invalid_image_url", "failed_to_download_image")
        assert asked == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "http://",
        "http:///x",
        "//127.0.0.1/",
        "file:///etc/passwd",
        "ftp://example.com/",
        "gopher://127.0.0.1/",
        "unix:///var/run/docker.sock",
        "http+unix://%2Fvar%2Frun%2Fdocker.sock/x",
        "javascript:alert(1)",
        "http://[::1",
        "http://[v1.fe80::a+en1]/",
        "http://example.com:99999/",
        "http://example.com:port/",
        "http://user:password@example.com/",
        "http://\ud800/",
        "http://xn--/",
        "http://exa mple\x00.com\r\nhost: x/",
    ],
)
async def test_what_is_no_url_of_the_web_is_a_clear_error(url: str) -> None:
    assert await code_of(url) in ("invalid_image_url", "failed_to_download_image", "private_address_refused")


@given(st.text(max_size=40))
def test_no_text_at_all_breaks_the_guard(text: str) -> None:
    guard = OutboundGuard(allow_private=False, bytes_max=10, timeout_seconds=0.5)
    for url in (text, f"http://{text}", f"http://127.0.0.1{text}"):
        try:
            guard._checked(url, None, "p")
        except InvalidRequest:
            continue


async def test_a_name_that_leads_to_one_private_address_among_public_ones_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        addresses = ["93.184.216.34", "10.0.0.1"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(outbound.socket, "getaddrinfo", resolve)
    assert await code_of("http://rebinding.example/") == "private_address_refused"


async def test_a_name_that_resolves_to_something_else_the_second_time_is_connected_to_as_it_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter(["93.184.216.34", *["127.0.0.1"] * 100])
    connected: list[Any] = []

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    class Noting(OutboundGuard):
        def _socket(self, address: tuple[Any, ...]) -> socket.socket:
            connected.append(address[4][0])
            raise OSError("no network in this test")

    monkeypatch.setattr(outbound.socket, "getaddrinfo", resolve)
    guard = Noting(allow_private=False, bytes_max=10, timeout_seconds=2.0)
    assert await code_of("http://rebinding.example/", guard) == "failed_to_download_image"
    assert set(connected) == {"93.184.216.34"}


async def test_the_last_look_is_where_the_socket_is_made() -> None:
    """Whatever a resolver or a reader of URLs lets through, no connection is made to what is not permitted."""
    async with serving(found) as (port, asked):
        connector = aiohttp.TCPConnector(socket_factory=GUARD._socket)
        async with aiohttp.ClientSession(connector=connector) as session:
            for host in ("127.0.0.1", "localhost"):
                with pytest.raises(aiohttp.ClientError):
                    await session.get(f"http://{host}:{port}/")
        assert asked == []


async def test_a_redirect_is_followed_through_the_same_guard() -> None:
    local = OutboundGuard(allow_private=True, bytes_max=1_000, timeout_seconds=2.0)

    def redirect(head: str) -> bytes:
        if head.startswith("GET /b"):
            return found(head)
        return b"HTTP/1.1 302 Found\r\nlocation: /b?x=1\r\ncontent-length: 0\r\n\r\n"

    async with serving(redirect) as (port, asked):
        assert await local.fetch(f"http://127.0.0.1:{port}/a", param="p", accept="image/*") == (b"PNG", "image/png")
        assert [head.split(" ")[1] for head in asked] == ["/a", "/b?x=1"]


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://x/", "http://a:b@127.0.0.1/", "http://[::1", "gopher://x", "\x00"],
)
async def test_a_redirect_to_what_is_no_url_of_the_web_is_refused(location: str) -> None:
    local = OutboundGuard(allow_private=True, bytes_max=1_000, timeout_seconds=2.0)
    answer = f"HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode()
    async with serving(lambda _: answer) as (port, asked):
        assert await code_of(f"http://127.0.0.1:{port}/", local) in ("invalid_image_url", "failed_to_download_image")
        assert len(asked) == 1


async def test_a_redirect_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(found) as (port, asked):

        class Lenient(OutboundGuard):
            """Takes the first server for a public one."""

            def permits(self, address: str) -> bool:
                return address == "127.0.0.1" or super().permits(address)

        guard = Lenient(allow_private=False, bytes_max=1_000, timeout_seconds=2.0)
        for target in ("http://127.0.0.2/", f"http://localhost:{port}/", "http://[::1]/", "http://169.254.169.254/"):
            answer = f"HTTP/1.1 302 Found\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n".encode()
            async with serving(lambda _, answer=answer: answer) as (first, _):
                code = "private_address_refused"
                if "localhost" in target:
                    monkeypatch.setattr(
                        outbound.socket,
                        "getaddrinfo",
                        lambda host, port, **_: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", port))],
                    )
                assert await code_of(f"http://127.0.0.1:{first}/", guard) == code
        assert asked == []


async def test_redirects_have_an_end() -> None:
    local = OutboundGuard(allow_private=True, bytes_max=1_000, timeout_seconds=2.0)
    loop = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: /again\r\ncontent-length: 0\r\n\r\n"
    async with serving(lambda _: loop) as (port, asked):
        assert await code_of(f"http://127.0.0.1:{port}/", local) == "failed_to_download_image"
        assert len(asked) == outbound.REDIRECTS_MAX + 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        b"not http at all\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 3\r\n\r\nabc",
    ],
)
async def test_a_server_that_does_not_deliver_is_a_clear_error(answer: bytes) -> None:
    local = OutboundGuard(allow_private=True, bytes_max=1_000, timeout_seconds=2.0)
    async with serving(lambda _: answer) as (port, _):
        assert await code_of(f"http://127.0.0.1:{port}/", local) == "failed_to_download_image"


async def test_a_server_that_never_ends_is_left_in_time() -> None:
    slow = OutboundGuard(allow_private=True, bytes_max=1_000, timeout_seconds=0.1)
    gate = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
        await gate.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    assert await code_of(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", slow) == "failed_to_download_image"
    gate.set()
    server.close()


async def test_what_is_larger_than_allowed_is_refused_before_it_is_read() -> None:
    local = OutboundGuard(allow_private=True, bytes_max=1_000, timeout_seconds=2.0)
    large = b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n" + b"x" * 1_001
    async with serving(lambda _: large) as (port, _):
        assert await code_of(f"http://127.0.0.1:{port}/", local) == "image_file_too_large"


async def test_proxies_and_passwords_of_the_environment_are_not_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    netrc = tmp_path_factory.mktemp("home") / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password hunter2\n")
    local = OutboundGuard(allow_private=True, bytes_max=1_000, timeout_seconds=2.0)
    async with serving(found) as (port, asked), serving(found) as (proxy, proxied):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        monkeypatch.setenv("NETRC", str(netrc))
        await local.fetch(f"http://127.0.0.1:{port}/x", param="p", accept="image/*")
    assert proxied == []
    assert "authorization" not in asked[0].lower()
    assert "cookie" not in asked[0].lower()


async def test_names_that_take_long_do_not_hold_up_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    gate = threading.Event()
    monkeypatch.setattr(outbound.socket, "getaddrinfo", lambda *_, **__: gate.wait(5) or [])
    hasty = OutboundGuard(allow_private=False, bytes_max=10, timeout_seconds=0.05)
    try:
        codes = await asyncio.gather(*[code_of(f"http://slow{number}.example/", hasty) for number in range(20)])
        assert set(codes) == {"failed_to_download_image"}
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "free"), 1) == "free"
    finally:
        gate.set()


@pytest.mark.parametrize("host", ["a" * 64, "a" * 5_000, "a." * 200, "x" * 64 + ".example"])
async def test_a_name_that_no_name_server_takes_is_a_clear_error(host: str) -> None:
    assert await code_of(f"http://{host}/") in ("invalid_image_url", "failed_to_download_image")
