"""One connection of a sandbox, from its first request to its end: plain requests, tunnels, and TLS that is ended here.

What a tunnel carries is looked at once: TLS must name the host of the CONNECT request, and on port 80 there must be
plain HTTP. Only for hosts with secrets is TLS ended, and every request inside is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final, Protocol

import h11

from stateroom.addresses import is_address
from stateroom.workspaces.egress.authority import Authority
from stateroom.workspaces.egress.dial import Dialer, PrivateAddress, Unreachable
from stateroom.workspaces.egress.domains import WEB_PORTS, Target, read_host
from stateroom.workspaces.egress.hello import NotTls, begins_tls, read_hello
from stateroom.workspaces.egress.http import (
    Bounds,
    Broken,
    Exchange,
    Inside,
    Wire,
    absolute,
    check_host,
    connect_target,
    has_body,
    head_for,
    may_repeat,
    origin,
)
from stateroom.workspaces.egress.pipe import Pipe, SocketPipe, TlsPipe, relay
from stateroom.workspaces.egress.policy import NetworkPolicy
from stateroom.workspaces.egress.refusals import Refused
from stateroom.workspaces.egress.secrets import Mask, Substitution

log = logging.getLogger("stateroom.egress")

_LINGER_SECONDS: Final = 1.0
_FRAME_PART: Final = 4
"""Bytes of a secret's beginning at the end of a web socket's bytes that are held back: a message must not wait."""


class House(Protocol):
    """What conversations of all workspaces share."""

    @property
    def authority(self) -> Authority: ...
    @property
    def bounds(self) -> Bounds: ...
    @property
    def dialer(self) -> Dialer: ...


class Line(Protocol):
    """The workspace that a conversation belongs to."""

    @property
    def turns(self) -> asyncio.Semaphore: ...
    @property
    def policy(self) -> NetworkPolicy: ...

    def judge(self, target: Target) -> str:
        """Why a target may not be reached, in one word; empty when it may."""
        ...

    def decided(self, target: Target | None, method: str, reason: str) -> None:
        """Tell of a decision; `listed` is the only reason to let something through."""
        ...

    def carried(self, sent: int, received: int) -> None: ...


class Conversation:
    """Serves one connection. Its target is where it leads now."""

    def __init__(self, house: House, line: Line, pipe: Pipe) -> None:
        self._house = house
        self._bounds = house.bounds
        self._line = line
        self._pipe = pipe
        self._server: Wire | None = None
        self._server_of: Inside | None = None
        self._pipe_out: SocketPipe | None = None
        self.target: Target | None = None

    async def run(self) -> None:
        """Raises nothing but CancelledError."""
        try:
            with contextlib.suppress(OSError):  # whoever has gone is told nothing; TimeoutError is an OSError
                async with asyncio.timeout(self._bounds.total_seconds):
                    await self._serve(self._pipe, None)
                    await self._finish()
        finally:
            self._pipe.abort()
            self._hang_up()

    async def refuse(self, refused: Refused) -> None:
        """Say that nobody is served now."""
        wire = Wire(self._pipe, h11.SERVER, self._bounds.head_bytes)
        try:
            with contextlib.suppress(OSError):
                await self._answer(wire, refused, "-")
                await self._finish()
        finally:
            self._pipe.abort()

    async def _finish(self) -> None:
        """Read what is still on its way: closing in front of it could take the answer back."""
        await self._pipe.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while await self._pipe.read():
                    pass

    def _hang_up(self) -> None:
        if self._server is not None:
            self._server.pipe.abort()
        self._server = self._server_of = self._pipe_out = None

    async def _serve(self, pipe: Pipe, inside: Inside | None) -> None:
        """Answer requests until no more come."""
        wire = Wire(pipe, h11.SERVER, self._bounds.head_bytes)
        while await self._serve_one(wire, inside) and wire.is_done:
            wire.state.start_next_cycle()

    async def _serve_one(self, wire: Wire, inside: Inside | None) -> bool:
        """Whether another request may follow."""
        method = "-"
        try:
            request = await self._request(wire)
            if request is None:
                return False
            method = request.method.decode("ascii")
            if request.method == b"CONNECT" and inside is None:
                await self._tunnel(wire, request)
                return False
            await self._forward(wire, request, inside)
            return True
        except Refused as refused:
            await self._answer(wire, refused, method)
        except h11.RemoteProtocolError as error:
            await self._answer(wire, Refused("bad_request", self.target, str(error)), method)
        except Broken as broken:
            await self._answer(wire, Refused("broken", self.target, broken.detail), method)
        except h11.LocalProtocolError:
            pass  # what a server began to answer cannot be brought to an end
        return False

    async def _request(self, wire: Wire) -> h11.Request | None:
        """The next head; None when there is none."""
        if not wire.state.trailing_data[0]:
            async with asyncio.timeout(self._bounds.between_seconds):
                first = await wire.pipe.read()
            if not first:
                return None
            wire.state.receive_data(first)
        async with asyncio.timeout(self._bounds.head_seconds):  # of the whole, however slowly it trickles
            event = await wire.event(self._bounds.head_seconds)
        return event if isinstance(event, h11.Request) else None

    async def _answer(self, wire: Wire, refused: Refused, method: str) -> None:
        """Refuse, and say why. The connection ends with it."""
        self._line.decided(refused.target, method, refused.reason)
        if wire.state.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = refused.text(self._line.policy).encode()
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            ("X-Stateroom-Egress", refused.reason),
        ]
        response = h11.Response(
            status_code=refused.status, headers=headers, reason=refused.line.encode("ascii", "replace")
        )
        events = (h11.Data(data=body),) if method != "HEAD" else ()
        with contextlib.suppress(h11.LocalProtocolError):  # what came so far allows no answer
            await wire.send(response, *events, h11.EndOfMessage(), seconds=self._bounds.head_seconds)

    async def _forward(self, wire: Wire, request: h11.Request, inside: Inside | None) -> None:
        """Pass a request on. Raises Refused, Broken."""
        body = has_body(request)
        to, path = absolute(request) if inside is None else (inside, origin(request))
        self.target = to.target
        if to.target.port == 443 and not to.tls:  # a secret would go out for everybody on the way to read
            raise Refused("not_tls", to.target)
        check_host(request, to.target, 443 if to.tls else 80)
        addresses = await self._admit(to.target, request.method.decode("ascii"))
        substitution = Substitution(self._line.policy.secrets_for(to.target))
        plain = head_for(request, to.target, path, tls=to.tls, masked=substitution.is_any)
        headers, hidden = substitution.outgoing(plain.headers.raw_items())
        head = h11.Request(method=plain.method, target=plain.target, headers=headers)
        if not body:
            await wire.event(self._bounds.head_seconds)  # the end of the message, which is there already
        while True:
            kept = self._server is not None and self._server_of == to
            exchange = Exchange(wire, await self._connected(to, addresses), self._bounds, hidden)
            try:
                await exchange.run(request, head, body=body)
                break
            except Broken as broken:  # a kept connection may have been dead
                self._hang_up()
                if not (kept and broken.before_answer and may_repeat(request, body=body)):
                    raise
            finally:
                self._line.carried(exchange.sent, exchange.received)
        if exchange.switched:
            await self._switch(wire, hidden)
        self._keep_or_hang_up(wire)

    async def _admit(self, target: Target, method: str) -> Sequence[str]:
        """The addresses of a target that may be reached. Raises Refused."""
        reason = self._line.judge(target)
        if reason:
            raise Refused(reason, target)
        try:
            addresses = await self._house.dialer.addresses(target, self._line.turns)
        except PrivateAddress:
            raise Refused("private_address", target) from None
        except Unreachable as error:
            raise Refused("unresolved", target, error.why) from None
        self._line.decided(target, method, "listed")
        return addresses

    async def _connected(self, to: Inside, addresses: Sequence[str]) -> Wire:
        """The server: the one of the request before, if it is the same and still there. Raises Refused."""
        server = self._server
        if server is not None and self._server_of == to and not self._is_stale:
            return server
        self._hang_up()
        context = self._house.authority.upstream() if to.tls else None
        try:
            pipe = await self._house.dialer.connect(to.target, addresses, context)
        except Unreachable as error:
            raise Refused("unreachable", to.target, error.why) from None
        self._pipe_out, self._server_of = pipe, to
        self._server = Wire(pipe, h11.CLIENT, self._bounds.head_bytes)
        return self._server

    @property
    def _is_stale(self) -> bool:
        return self._pipe_out is None or self._pipe_out.is_stale

    def _keep_or_hang_up(self, wire: Wire) -> None:
        server = self._server
        if server is not None and server.is_done and wire.is_done and not server.state.trailing_data[0]:
            server.state.start_next_cycle()
        else:
            self._hang_up()

    async def _switch(self, wire: Wire, hidden: dict[bytes, bytes]) -> None:
        """The bytes of a web socket."""
        server = self._server
        if server is None:
            return
        server.pipe.push_back(server.state.trailing_data[0])
        wire.pipe.push_back(wire.state.trailing_data[0])
        shown = Mask(hidden, same_length=True, held_from=_FRAME_PART).feed if hidden else None
        self._line.carried(*await relay(wire.pipe, server.pipe, self._bounds.idle_seconds, shown))

    async def _tunnel(self, wire: Wire, request: h11.Request) -> None:
        """Raises Refused."""
        target = connect_target(request)
        self.target = target
        addresses = await self._admit(target, "CONNECT")
        policy = self._line.policy
        has_secrets = bool(policy.secrets_for(target))
        if not has_secrets:
            await self._connected(Inside(target, False), addresses)
        await wire.event(self._bounds.head_seconds)  # the end of the message, which is there already
        response = h11.Response(status_code=200, headers=[], reason=b"Connection established")
        await wire.send(response, seconds=self._bounds.head_seconds)
        wire.pipe.push_back(wire.state.trailing_data[0])
        listed = policy.lists(target)
        if not has_secrets and listed is not None and listed.port not in (None, *WEB_PORTS):
            await self._opaque(target)
        else:
            await self._web(target, has_secrets=has_secrets)

    async def _web(self, target: Target, *, has_secrets: bool) -> None:
        """TLS or plain HTTP, which begin with what the client says."""
        async with asyncio.timeout(self._bounds.between_seconds):
            first = await self._pipe.read()
        if not first:
            return
        self._pipe.push_back(first)
        if begins_tls(first):
            raw = await self._checked_hello(target)
            if raw and has_secrets:
                self._pipe.push_back(raw)
                await self._end_tls(target)
            elif raw:
                await self._carry(raw)
        elif has_secrets or target.port == 80:
            await self._serve(self._pipe, Inside(target, False))
        else:
            self._line.decided(target, "CONNECT", "not_tls")

    async def _opaque(self, target: Target) -> None:
        """Whatever is spoken on a port that the policy names, but TLS only with the right host."""
        server = self._server
        assert server is not None
        reads = [asyncio.create_task(pipe.read()) for pipe in (self._pipe, server.pipe)]
        try:
            await asyncio.wait(reads, return_when=asyncio.FIRST_COMPLETED, timeout=self._bounds.idle_seconds)
        finally:
            for read in reads:
                read.cancel()
            said = await asyncio.gather(*reads, return_exceptions=True)
        first, greeting = (data if isinstance(data, bytes) else b"" for data in said)
        self._pipe.push_back(first)
        server.pipe.push_back(greeting)
        if not begins_tls(first):
            await self._carry(b"")
        elif raw := await self._checked_hello(target):
            await self._carry(raw)

    async def _checked_hello(self, target: Target) -> bytes:
        """The first message of TLS, as it came, if it names the host it should; else empty, and it is answered."""
        try:
            async with asyncio.timeout(self._bounds.head_seconds):
                hello = await read_hello(self._pipe)
        except NotTls:
            self._line.decided(target, "CONNECT", "not_tls")
            return b""
        named = ""
        with contextlib.suppress(ValueError):
            named = read_host(hello.name) if hello.name is not None else ""
        if named == target.host or (hello.name is None and is_address(target.host)):
            return hello.raw
        self._line.decided(target, "CONNECT", "sni_mismatch")
        await self._pipe.send(hello.refusal)
        return b""

    async def _carry(self, first: bytes) -> None:
        server = self._server
        assert server is not None
        if first:
            await server.pipe.send(first)
        sent, received = await relay(self._pipe, server.pipe, self._bounds.idle_seconds)
        self._line.carried(len(first) + sent, received)

    async def _end_tls(self, target: Target) -> None:
        """Be the server of a host with secrets, and read what is asked of it."""
        try:
            tls = TlsPipe(self._pipe, self._house.authority.context_for(target.host))
        except (OSError, ValueError) as error:
            log.error("egress.authority_failed reason=%s", type(error).__name__)
            return
        async with asyncio.timeout(self._bounds.head_seconds):
            await tls.handshake()
        await self._serve(tls, Inside(target, True))
        await tls.end()
