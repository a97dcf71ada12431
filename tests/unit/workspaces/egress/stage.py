"""A proxy with real sockets around it: real servers, and what a sandbox's side of the socket sees, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from stateroom.workspaces.egress.http import Bounds
from stateroom.workspaces.egress.policy import NetworkPolicy, make_policy
from stateroom.workspaces.egress.proxy import PORT, EgressProxy, Listener

API, OTHER, PLAIN = "api.example.test", "other.example.test", "plain.example.test"
SECRET = "s3cr3t/Value+of=the.api"
WORKSPACE = "cntr_one"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Answerer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Roots:
    """An authority of the test's own, whom the proxy believes."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "roots.pem"
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test roots")])
        builder = self._begun(self._name, self._key)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(x509.BasicConstraints(True, None), True).add_extension(usage, True)
        self._write(self.path, builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def server(self, *hosts: str) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = self._begun(x509.Name([]), key).add_extension(names, True).add_extension(issuer, False)
        pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        kind = serialization.PrivateFormat.PKCS8
        pem += key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())
        path = self._directory / "server.pem"
        self._write(path, pem)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(path)
        return context

    def _begun(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name)
        builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        return builder.public_key(key.public_key()).serial_number(x509.random_serial_number())

    def _write(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)


class Site:
    """A real server that remembers what it was asked, and by default tells what it got."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answer: Answerer | None = None
        self.port = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.asked.append((request.method, request.raw_path, headers, body))
        if self.answer is not None:
            return await self.answer(request)
        return web.json_response({"headers": headers, "body": body.decode("latin-1")}, headers={"x-seen": "yes"})

    def header(self, name: str) -> str | None:
        """Of the last request."""
        return self.asked[-1][2].get(name)


@contextlib.asynccontextmanager
async def site(context: ssl.SSLContext | None = None, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Site]:
    made = Site()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, ssl_context=context).start()
        made.port = runner.addresses[0][1]
        yield made
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def raw_site(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """A server that does what it likes; its port."""

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class Stage:
    """A proxy, one workspace of it, and the sandbox's side."""

    def __init__(self, directory: Path, roots: Path | None, bounds: Bounds | None, *, allow_private: bool) -> None:
        self.names: dict[str, Sequence[str]] = dict.fromkeys((API, OTHER, PLAIN), ("127.0.0.1",))
        self.looked_up: list[str] = []
        self.decisions: list[tuple[str, str, int, bool, str]] = []
        self.received = bytearray()
        self.directory = directory
        self.path = directory / "egress.sock"
        self.proxy = EgressProxy(
            directory / "authority",
            allow_private=allow_private,
            roots=roots,
            on_decision=lambda *decision: self.decisions.append(decision),
            bounds=bounds,
            resolve=self.resolve,
        )
        self.policy: NetworkPolicy | None = None
        self.bridge_port = 0

    def resolve(self, host: str, port: int) -> Sequence[str]:
        self.looked_up.append(host)
        found = self.names.get(host)
        if found is None:
            raise OSError(f"no such name: {host}")
        return found

    async def open(self, *domains: str, secrets: Sequence[tuple[str, str, str]] = ()) -> Listener:
        self.policy = policy(*domains, secrets=secrets)
        return await self.proxy.open(WORKSPACE, self.policy, self.path)

    @property
    def placeholder(self) -> str:
        assert self.policy is not None
        return self.policy.secrets[0].placeholder

    def reasons(self) -> list[str]:
        return [decision[4] for decision in self.decisions]

    async def bridge(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What runs inside a sandbox: bytes of a local port go to the socket, and back."""
        inner_reader, inner_writer = await asyncio.open_unix_connection(str(self.path))

        async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter, seen: bytearray | None) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    if seen is not None:
                        seen += data
                    sink.write(data)
                    await sink.drain()
                sink.write_eof()

        await asyncio.gather(carry(reader, inner_writer, None), carry(inner_reader, writer, self.received))
        writer.close()
        inner_writer.close()

    async def ask(self, data: bytes) -> bytes:
        """Send bytes to the proxy; everything it says until it hangs up."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        writer.write(data)
        async with asyncio.timeout(10):
            said = await reader.read()
        writer.close()
        self.received += said
        return said

    async def connect(self, authority: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        """A tunnel, and how the request for it was answered."""
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        writer.write(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
        return reader, writer, head

    def environment(self) -> dict[str, str]:
        trust = self.directory / "authority" / "trust"
        made = self.proxy.environment(self.policy, trust=str(trust))
        local = f"127.0.0.1:{self.bridge_port}"
        return {name: value.replace(f"127.0.0.1:{PORT}", local) for name, value in made.items()}

    async def run(self, *argv: str, environment: Mapping[str, str] = {}) -> tuple[int, str, str]:
        """A program, as it would run inside."""
        variables = {"PATH": os.environ["PATH"], "HOME": str(self.directory)} | self.environment() | dict(environment)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*argv, env=variables, stdout=pipe, stderr=pipe)
        async with asyncio.timeout(30):
            out, err = await process.communicate()
        return process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace")

    async def python(self, code: str) -> tuple[int, str, str]:
        return await self.run(sys.executable, "-c", code)


def policy(*domains: str, secrets: Sequence[tuple[str, str, str]] = ()) -> NetworkPolicy:
    given = [SimpleNamespace(domain=domain, name=name, value=value) for domain, name, value in secrets]
    return make_policy(domains, given)


@contextlib.asynccontextmanager
async def stage(
    *, roots: Path | None = None, bounds: Bounds | None = None, allow_private: bool = True
) -> AsyncIterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="egress-") as folder:
        made = Stage(Path(folder), roots, bounds, allow_private=allow_private)
        server = await asyncio.start_server(made.bridge, "127.0.0.1", 0)
        made.bridge_port = server.sockets[0].getsockname()[1]
        try:
            yield made
        finally:
            server.close()
            await made.proxy.close_all()
