"""One HTTP exchange: a request of a sandbox goes to a server, its answer back. Parsed and written anew by h11.

Nothing is passed on as it came: heads are rebuilt from what the parser understood and bodies are framed afresh, so
that no two readers can disagree about where a message ends.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from typing import Any, Final

import h11
import msgspec

from stateroom.workspaces.egress.domains import Target, read_authority
from stateroom.workspaces.egress.pipe import Pipe
from stateroom.workspaces.egress.refusals import Refused
from stateroom.workspaces.egress.secrets import Headers, Mask

_HOP: Final = frozenset({b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade"})
_FRAMING: Final = frozenset({b"host", b"content-length"})
_UNDER_MASK: Final = frozenset({b"accept-encoding", b"range", b"if-range", b"sec-websocket-extensions"})
"""What would bring secrets back in a form or in pieces in which they are not found."""
_INFORMATIONAL_MAX: Final = 16
_AT_ONCE: Final = 32
"""Events of a connection that are seen to before others have their turn."""
_AUTHORITY_END: Final = re.compile(rb"[/?#]")
_SAFE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS"})


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What one workspace may take."""

    connections: int = 64
    head_bytes: int = 65536
    head_seconds: float = 15.0
    """For the whole head of a request, or the whole handshake."""
    between_seconds: float = 60.0
    """Between two requests of a connection."""
    idle_seconds: float = 300.0
    """In which nothing comes in the middle of something."""
    connect_seconds: float = 15.0
    total_seconds: float = 4 * 3600.0
    """Of one connection."""


class Inside(msgspec.Struct, frozen=True):
    """What requests lead to: of a tunnel they are in, or of a URL."""

    target: Target
    tls: bool


class Broken(Exception):
    """The server's side failed. `detail` says how."""

    def __init__(self, detail: str, *, before_answer: bool) -> None:
        super().__init__(detail)
        self.detail = detail
        self.before_answer = before_answer


class Wire:
    """h11 over a pipe."""

    def __init__(self, pipe: Pipe, role: type[h11.CLIENT] | type[h11.SERVER], head_bytes: int) -> None:
        self.pipe = pipe
        self.state = h11.Connection(role, max_incomplete_event_size=head_bytes)
        self._at_once = 0
        """Events since others last had their turn."""

    async def event(self, seconds: float) -> Any:
        """Raises OSError (TimeoutError is one), h11.RemoteProtocolError."""
        event = self.state.next_event()
        self._at_once += 1
        if self._at_once >= _AT_ONCE:  # a few kilobytes can hold thousands of pieces
            self._at_once = 0
            await asyncio.sleep(0)
        if event is h11.NEED_DATA:
            async with asyncio.timeout(seconds):
                while event is h11.NEED_DATA:
                    self.state.receive_data(await self.pipe.read())
                    event = self.state.next_event()
        return event

    async def send(self, *events: h11.Event, seconds: float) -> int:
        """How many bytes that were. Raises OSError, h11.LocalProtocolError."""
        data = b"".join(self.state.send(event) or b"" for event in events)
        if data:
            async with asyncio.timeout(seconds):
                await self.pipe.send(data)
        return len(data)

    @property
    def is_done(self) -> bool:
        """Whether both sides have said all, and another exchange may follow."""
        return self.state.our_state is h11.DONE and self.state.their_state is h11.DONE


def has_body(request: h11.Request) -> bool:
    """Raises Refused for a request whose end two readers could see in two places."""
    names = dict(request.headers)
    length, encoded = names.get(b"content-length"), b"transfer-encoding" in names
    if encoded and (length is not None or request.http_version < b"1.1"):
        raise Refused("bad_request", detail="Content-Length and Transfer-Encoding contradict each other")
    return encoded or (length is not None and int(length) > 0)


def absolute(request: h11.Request) -> tuple[Inside, bytes]:
    """Where a request to a proxy leads, and the path that the server is asked for. Raises Refused."""
    url = _plain_target(request)
    scheme, found, rest = url.partition(b"://")
    if scheme.lower() in (b"https", b"wss"):
        raise Refused("bad_request", detail="https goes through CONNECT")
    if not found or scheme.lower() not in (b"http", b"ws"):
        raise Refused("bad_request", detail="a proxy is asked for a whole URL, or with CONNECT")
    authority = _AUTHORITY_END.split(rest, maxsplit=1)[0]
    path = rest[len(authority) :]
    try:
        target = read_authority(authority.decode("ascii"), 80)
    except ValueError as error:
        raise Refused("bad_request", detail=f"of the host of the URL: {error}") from None
    return Inside(target, False), path if path.startswith(b"/") else b"/" + path


def origin(request: h11.Request) -> bytes:
    """The path that is asked for inside a tunnel. Raises Refused."""
    path = _plain_target(request)
    if not path.startswith(b"/") and (path, request.method) != (b"*", b"OPTIONS"):
        raise Refused("bad_request", detail="inside a tunnel a server is asked for a path")
    return path


def connect_target(request: h11.Request) -> Target:
    """Where a CONNECT leads. Raises Refused."""
    try:
        target = read_authority(request.target.decode("ascii"), None)
    except ValueError as error:
        raise Refused("bad_request", detail=f"of the host of the CONNECT request: {error}") from None
    if has_body(request):
        raise Refused("bad_request", target, "a CONNECT request has no body")
    check_host(request, target, target.port)
    return target


def is_upgrade(request: h11.Request) -> bool:
    """Whether it asks for a web socket. Every other upgrade is left out, and the request goes on without it."""
    asked = {value.strip().lower() for name, value in request.headers if name == b"upgrade"}
    is_asked = asked == {b"websocket"} and b"upgrade" in _named(request.headers)
    return is_asked and request.method == b"GET" and not has_body(request)


def check_host(request: h11.Request, target: Target, default_port: int) -> None:
    """Raises Refused when the Host header says something else."""
    for name, value in request.headers:
        if name == b"host":
            try:
                if read_authority(value.decode("ascii"), default_port) == target:
                    continue
            except ValueError:
                pass
            raise Refused("host_mismatch", target)


def head_for(request: h11.Request, target: Target, path: bytes, *, tls: bool, masked: bool) -> h11.Request:
    """The request as the server is to get it, but for the secrets."""
    headers: Headers = [(b"Host", target.host_header(tls=tls).encode())]
    headers += _end_to_end(request.headers, _UNDER_MASK | {b"host"} if masked else frozenset({b"host"}))
    if masked:
        headers.append((b"Accept-Encoding", b"identity"))
    if b"transfer-encoding" in {name for name, _ in request.headers}:
        headers.append((b"Transfer-Encoding", b"chunked"))
    if is_upgrade(request):
        headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    return h11.Request(method=request.method, target=path, headers=headers)


class Exchange:
    """A request on its way to a server that is connected."""

    def __init__(self, client: Wire, server: Wire, bounds: Bounds, hidden: dict[bytes, bytes]) -> None:
        self._client = client
        self._server = server
        self._idle = bounds.idle_seconds
        self._hidden = hidden
        self._mask = Mask(hidden)
        self.sent = 0
        self.received = 0
        self._is_gone = False
        self.switched = False
        """Both sides speak something else from here on."""

    async def run(self, request: h11.Request, head: h11.Request, *, body: bool) -> None:
        """Raises Broken, Refused, OSError, h11.ProtocolError."""
        try:
            events = (head,) if body else (head, h11.EndOfMessage())
            self.sent += await self._server.send(*events, seconds=self._idle)
        except OSError as error:
            raise Broken(_why(error), before_answer=True) from None
        sending = asyncio.create_task(self._send(body))
        try:
            await self._answer(request)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _send(self, body: bool) -> None:
        """The body; then watch for the client's going away, so that nothing is fetched for nobody."""
        client, server = self._client, self._server
        try:
            while body:
                event = await client.event(self._idle)
                if not isinstance(event, h11.Data | h11.EndOfMessage):
                    break
                body = await self._pass(event) and isinstance(event, h11.Data)
            else:
                data = await client.pipe.read()
                if data:
                    client.pipe.push_back(data)
                    return
        except (OSError, h11.RemoteProtocolError):
            pass  # as if it had gone
        self._is_gone = True
        server.pipe.abort()

    async def _pass(self, event: h11.Event) -> bool:
        """A piece of the body; whether the server takes more. One that does not may have answered nevertheless."""
        passed = h11.Data(data=event.data) if isinstance(event, h11.Data) else h11.EndOfMessage()
        try:
            self.sent += await self._server.send(passed, seconds=self._idle)
        except (OSError, h11.LocalProtocolError):
            return False
        return True

    async def _answer(self, request: h11.Request) -> None:
        head = await self._head(request)
        if head is None:
            return
        coded = [value for name, value in head.headers if name == b"content-encoding"]
        if self._hidden and any(value.strip().lower() not in (b"", b"identity") for value in coded):
            raise Refused("compressed")
        response = h11.Response(
            status_code=head.status_code, headers=self._shown_headers(request, head), reason=self._whole(head.reason)
        )
        await self._client.send(response, seconds=self._idle)
        while True:
            event = await self._next(before_answer=False)
            if isinstance(event, h11.Data):
                self.received += len(event.data)
                data = self._mask.feed(bytes(event.data))
                if data:
                    await self._client.send(h11.Data(data=data), seconds=self._idle)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise Broken("it closed the connection", before_answer=False)
        rest = self._mask.finish()
        last = [h11.Data(data=rest)] if rest else []
        await self._client.send(*last, h11.EndOfMessage(), seconds=self._idle)

    async def _head(self, request: h11.Request) -> h11.Response | None:
        """The head of the answer; None when the protocol was switched instead."""
        for _ in range(_INFORMATIONAL_MAX):
            event = await self._next(before_answer=True)
            if isinstance(event, h11.Response):
                return event
            if not isinstance(event, h11.InformationalResponse):
                break
            if event.status_code == 101:
                headers = self._whole_headers(_end_to_end(event.headers))
                headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
                switching = h11.InformationalResponse(status_code=101, headers=headers, reason=b"Switching Protocols")
                await self._client.send(switching, seconds=self._idle)
                self.switched = True
                return None
            if request.http_version >= b"1.1":
                headers = self._whole_headers(_end_to_end(event.headers, _FRAMING))
                told = h11.InformationalResponse(status_code=event.status_code, headers=headers)
                await self._client.send(told, seconds=self._idle)
        raise Broken("it closed the connection", before_answer=True)

    async def _next(self, *, before_answer: bool) -> Any:
        try:
            return await self._server.event(self._idle)
        except OSError as error:
            if self._is_gone:
                raise
            raise Broken(_why(error), before_answer=before_answer) from None
        except h11.RemoteProtocolError as error:
            if self._is_gone:
                raise ConnectionResetError from None
            raise Broken(f"its answer is not HTTP/1.1 ({error})", before_answer=before_answer) from None

    def _shown_headers(self, request: h11.Request, head: h11.Response) -> Headers:
        names = {name for name, _ in head.headers}
        bodiless = request.method == b"HEAD" or head.status_code in (204, 304)
        reframed = b"transfer-encoding" in names or (bool(self._hidden) and not bodiless)
        left_out = frozenset({b"content-length", b"accept-ranges"}) if reframed else frozenset()
        return self._whole_headers(_end_to_end(head.headers, left_out))

    def _whole_headers(self, headers: Headers) -> Headers:
        return [(name, self._whole(value)) for name, value in headers if self._whole(name.lower()) == name.lower()]

    def _whole(self, value: bytes) -> bytes:
        return self._mask.whole(bytes(value))


def may_repeat(request: h11.Request, *, body: bool) -> bool:
    """Whether it may be sent again when a kept connection turns out to be dead."""
    return not body and request.method in _SAFE


def _plain_target(request: h11.Request) -> bytes:
    if request.method == b"TRACE":
        raise Refused("bad_request", detail="TRACE shows headers that are nobody's business")
    if request.method == b"CONNECT":
        raise Refused("bad_request", detail="there is no CONNECT inside a tunnel")
    return bytes(request.target).partition(b"#")[0]


def _end_to_end(headers: Any, left_out: frozenset[bytes] = frozenset()) -> Headers:
    """What is for the other end. Capitals are kept, which some servers look at."""
    dropped = (_HOP | _named(headers)) - _FRAMING | left_out
    return [
        (bytes(raw), bytes(value))
        for raw, value in headers.raw_items()
        if (name := bytes(raw).lower()) not in dropped and not name.startswith(b"proxy-")
    ]


def _named(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """The headers that a Connection header says are for the next hop alone."""
    values = [value for name, value in headers if name == b"connection"]
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))


def _why(error: OSError) -> str:
    return "it took too long" if isinstance(error, TimeoutError) else "it closed the connection"
