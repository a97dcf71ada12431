"""Connections that fail for real, and what is said of them."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from stateroom.cli.client import Client, ServerDown
from stateroom.errors import BackendError
from stateroom.models.chat import ChatBackend
from stateroom.reasons import reason
from stateroom.settings import BackendSettings

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(answer: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def refuse_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.fixture
def own_certificate(tmp_path: Path) -> ssl.SSLContext:
    """A certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "own.pem"
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


async def said_of(url: str) -> tuple[str, str]:
    """What a backend says when its server cannot be asked, and the code."""
    backend = ChatBackend(BackendSettings(url, connect_timeout_seconds=1.0))
    try:
        with pytest.raises(BackendError) as caught:
            await backend.models()
    finally:
        await backend.close()
    assert not re.search(r"Errno|Error\b|errno|_ssl|\(1,", caught.value.message), caught.value.message
    return caught.value.message, caught.value.code


async def test_a_port_where_nothing_listens() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    assert await said_of(url) == (
        f"The model server at {url} cannot be reached: it refused the connection (nothing listens there). "
        "Check that it runs and its URL.",
        "backend_unavailable",
    )


async def test_a_name_that_nobody_has() -> None:
    message, code = await said_of("http://nobody.invalid/v1")
    assert code == "backend_unavailable"
    assert re.search(r"cannot be found: (no such host name is known|the name server does not answer)\.", message)


async def test_a_server_that_does_not_speak_tls() -> None:
    async with listening(refuse_tls) as port:
        message, code = await said_of(f"https://127.0.0.1:{port}/v1")
    assert code == "backend_tls_failed"
    assert "cannot be reached over TLS: it does not speak TLS there." in message


async def test_a_certificate_that_nobody_vouches_for(own_certificate: ssl.SSLContext) -> None:
    async with listening(hang_up, own_certificate) as port:
        message, code = await said_of(f"https://127.0.0.1:{port}/v1")
    assert code == "backend_tls_failed"
    assert "its certificate is not trusted: self-signed certificate." in message


async def test_a_server_that_hangs_up_during_the_handshake() -> None:
    async with listening(hang_up) as port:
        message, _ = await said_of(f"https://127.0.0.1:{port}/v1")
    assert "it closed the connection" in message


def test_the_command_line_says_the_same() -> None:
    port = free_port()
    with pytest.raises(ServerDown) as caught:
        Client(f"http://127.0.0.1:{port}/v1").call("GET", "/models")
    where = f"http://127.0.0.1:{port}/v1"
    assert caught.value.message == (f"No server answers at {where}: it refused the connection (nothing listens there).")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "it did not answer in time"),
        (OSError(113, "No route to host"), "its machine cannot be reached"),
        (ConnectionResetError(104, "Connection reset by peer"), "it closed the connection"),
        (socket.gaierror(socket.EAI_AGAIN, "Try again"), "the name server does not answer"),
        (socket.gaierror(-99, "odd"), "its name cannot be looked up (odd)"),
        (ssl.SSLError(1, "[SSL] odd"), "the handshake failed"),
        (OSError(), "OSError"),
        (OSError(9999, "something new"), "something new"),
        (ValueError("of another kind"), "of another kind"),
        (ValueError(), "ValueError"),
    ],
)
def test_every_failure_has_a_reason(error: Exception, said: str) -> None:
    assert reason(error) == said
