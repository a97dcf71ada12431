"""One WebSocket connection with its lanes: from its client's messages to runs, and from their streams to frames.

Requests of one lane are carried out one after the other, those of different lanes at the same time. A lane follows the
stream of its run at a position of its own, as any reader does, and writes when the socket takes something in: a slow
client costs nothing but its place. A connection that is lost takes its unstored runs with it; stored ones go on.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import aclosing, suppress
from typing import Any, Final

import msgspec
from starlette.types import Message, Receive, Send

from stateroom.access.principal import Principal
from stateroom.api.gate import Gate
from stateroom.api.steers import Steers
from stateroom.errors import InvalidRequest, ServerStopping, StateroomError, TooMany
from stateroom.runtime.live import LiveRun
from stateroom.runtime.local import LocalMemory
from stateroom.runtime.runs import RunRequest, Runs
from stateroom.telemetry.context import note_error
from stateroom.wire.decoding import Bounds
from stateroom.wire.sockets import (
    CREATE,
    STEER,
    decode_message,
    decode_steer,
    error_event,
    lane_of,
    read_envelope,
    socket_events,
)

log = logging.getLogger("stateroom.api")

SURFACE: Final = "responses"

LANES_MAX: Final = 32
"""Named lanes of one connection, over its whole life."""
ACTIVE_MAX: Final = 16
"""Responses of one connection that go on at the same time."""
WAITING_MAX: Final = 64
"""Requests of one connection that wait for their lane, or for one of these places."""
PAST_MAX: Final = 1_024
"""Responses of one connection of which is remembered how they ended."""

GOING_AWAY: Final = 1001
SERVICE_RESTART: Final = 1012


class Means(msgspec.Struct, frozen=True):
    """What all connections work with."""

    runs: Runs
    memory: LocalMemory
    gate: Gate
    bounds: Bounds
    path: str
    body_bytes: int
    seconds: float
    """How long a connection may be open."""


def stopping() -> StateroomError:
    """What is told to who asks for something while the server stops."""
    return ServerStopping("This server is stopping. Connect again when it is up.")


class _Gone(Exception):
    """The client is not there any more."""


class _Lane:
    """Requests that are carried out one after the other."""

    __slots__ = ("name", "task", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.waiting: deque[bytes] = deque()
        self.task: asyncio.Task[None] | None = None


class Connection:
    """One WebSocket."""

    __slots__ = (
        "_authorization",
        "_close_code",
        "_closing",
        "_lanes",
        "_local",
        "_lost",
        "_means",
        "_past",
        "_places",
        "_refusal",
        "_running",
        "_send",
        "_steers",
        "_waiting",
        "_waiting_bytes",
    )

    def __init__(self, means: Means, authorization: bytes, send: Send) -> None:
        self._means = means
        self._authorization = authorization
        self._send = send
        self._lanes: dict[str, _Lane] = {}
        self._places = asyncio.Semaphore(ACTIVE_MAX)
        self._waiting = 0
        self._waiting_bytes = 0
        self._local = means.memory.open()
        self._steers = Steers(self._write, means.bounds)
        self._running: dict[str, tuple[LiveRun, _Lane]] = {}
        self._past: dict[str, tuple[str, str]] = {}
        """Lane and final status of responses, by id, oldest first."""
        self._lost = False
        self._refusal: StateroomError | None = None
        """Why no more requests are taken."""
        self._close_code = 0
        self._closing: asyncio.Task[None] | None = None

    async def serve(self, receive: Receive) -> None:
        """Take messages until the connection ends."""
        timer = asyncio.get_running_loop().call_later(self._means.seconds, self._expire)
        try:
            while (message := await receive())["type"] != "websocket.disconnect":
                await self._take(message)
        except _Gone:
            pass  # nobody is there to be told anything
        finally:
            timer.cancel()

    def lose(self) -> None:
        """The connection is gone: what waits on it will not be done, and unstored runs end."""
        self._lost = True
        for lane in self._lanes.values():
            lane.waiting.clear()
        for run, _ in self._running.values():
            if not run.stored:
                self._means.runs.dispatcher.abandon(run)
        self._local.close()

    def end_with(self, refusal: StateroomError, code: int) -> None:
        """Take no more requests, and close as soon as nothing goes on."""
        if self._refusal is None:
            self._refusal, self._close_code = refusal, code
        self._close_if_idle()

    def _expire(self) -> None:
        minutes = self._means.seconds / 60
        message = f"This connection has reached its limit of {minutes:g} minutes. Open another one to go on."
        self.end_with(InvalidRequest(message, code="websocket_connection_limit_reached"), GOING_AWAY)

    def _close_if_idle(self) -> None:
        busy = any(lane.task is not None for lane in self._lanes.values())
        if self._refusal is not None and self._closing is None and not busy and not self._lost:
            self._closing = asyncio.get_running_loop().create_task(self._close(self._refusal))

    async def _close(self, refusal: StateroomError) -> None:
        with suppress(_Gone):
            if self._close_code == GOING_AWAY:
                await self._write(error_event(refusal))
            await self._deliver({"type": "websocket.close", "code": self._close_code, "reason": refusal.code})

    async def _take(self, message: Message) -> None:
        """One message of the client. What is wrong with it is told, and the connection goes on."""
        lane_name = ""
        try:
            text = message.get("text")
            if text is None:
                raise InvalidRequest("Messages are JSON in text frames; this one is binary.", code="invalid_json")
            body = text.encode()
            envelope = read_envelope(body, self._means.bounds.depth)
            if envelope.type == STEER:
                await self._steer(body)
                return
            if envelope.type != CREATE:
                raise InvalidRequest(f"'type' must be '{CREATE}' or '{STEER}'.", code="invalid_value", param="type")
            lane_name = lane_of(envelope)
            self._queue(self._lane(lane_name), body)
        except StateroomError as error:
            note_error(error.code)
            await self._write(error_event(error, lane_name))

    async def _steer(self, body: bytes) -> None:
        request = decode_steer(body, self._means.bounds)
        running = self._running.get(request.previous)
        if running is None:
            lane_name, status = self._past.get(request.previous, ("", None))
            await self._steers.refuse(lane_name, request, status)
        else:
            run, lane = running
            try:
                self._admit()
            except StateroomError as error:
                await self._steers.fail(lane.name, request, error)
                return
            steering, bytes_max = self._means.runs.steering, self._means.body_bytes
            await self._steers.steer(steering, run, lane.name, request, bytes_max)

    def _lane(self, name: str) -> _Lane:
        lane = self._lanes.get(name)
        if lane is None:
            if name and len(self._lanes) - ("" in self._lanes) >= LANES_MAX:
                message = f"A connection has at most {LANES_MAX} named lanes. Use one of them again, or open another."
                raise InvalidRequest(message, code="websocket_stream_limit_reached", param="stream_id")
            lane = self._lanes[name] = _Lane(name)
        return lane

    def _queue(self, lane: _Lane, body: bytes) -> None:
        """Have the request carried out when it is its turn. Raises StateroomError."""
        if self._refusal is not None:
            raise self._refusal
        crowded = self._waiting >= WAITING_MAX
        if crowded or (self._waiting and self._waiting_bytes + len(body) > self._means.body_bytes):
            message = "Too many requests are waiting on this connection. Wait until some of them have ended."
            raise TooMany(message, code="too_many_requests", retry_after=1.0)
        self._waiting += 1
        self._waiting_bytes += len(body)
        lane.waiting.append(body)
        if lane.task is None:
            lane.task = asyncio.get_running_loop().create_task(self._work(lane))

    async def _work(self, lane: _Lane) -> None:
        """Carry out what waits in the lane."""
        try:
            while lane.waiting and not self._lost:
                async with self._places:
                    if not lane.waiting:
                        break
                    body = lane.waiting.popleft()
                    self._waiting -= 1
                    self._waiting_bytes -= len(body)
                    await self._respond(lane, body)
        except _Gone:
            lane.waiting.clear()  # `lose` sees to what else the client has left
        except Exception:  # nothing that is wrong with one request may take the others with it; the log has the trace
            log.exception("socket.broke")
            error = StateroomError("The server met an unexpected condition in this request; see its log.")
            note_error(error.code)
            with suppress(_Gone):
                await self._write(error_event(error, lane.name))
        finally:
            lane.task = None
            if lane.waiting and not self._lost:
                lane.task = asyncio.get_running_loop().create_task(self._work(lane))
            self._close_if_idle()

    async def _respond(self, lane: _Lane, body: bytes) -> None:
        """Carry out one request, and what follows from it by itself."""
        try:
            run: LiveRun | None = await self._start(body)
        except StateroomError as error:
            note_error(error.code)
            await self._write(error_event(error, lane.name))
            await self._failed(lane, _previous_in(body))
            return
        while run is not None:
            self._running[run.id] = run, lane
            if self._lost and not run.stored:
                self._means.runs.dispatcher.abandon(run)
            try:
                await self._follow(lane, run)
            finally:
                del self._running[run.id]
                self._remember(run, lane)
            if run.state.ended is not None and run.state.ended.status == "failed":
                await self._failed(lane, run.state.started.previous)
            await self._steers.tell(lane.name, run)
            run = run.successor

    def _admit(self) -> Principal:
        """Whether who connected may ask for one thing more. Raises StateroomError."""
        gate = self._means.gate
        gate.refresh()  # the key may have been withdrawn meanwhile
        principal = gate.admit("POST", self._means.path, self._authorization)
        _, refusal = gate.count(principal)
        if refusal is not None:
            raise refusal
        if self._refusal is not None:
            raise self._refusal
        return principal

    async def _start(self, body: bytes) -> LiveRun:
        """Raises StateroomError."""
        principal = self._admit()
        asked = decode_message(body, self._means.bounds)
        run = await self._means.runs.create(
            principal.project,
            RunRequest(
                settings=asked.settings,
                input=asked.input,
                previous=asked.previous,
                conversation=asked.conversation,
                stream=True,
                store=asked.store,
                obfuscate=asked.obfuscate,
                generate=asked.generate,
                key=principal.key_id,
            ),
            surface=SURFACE,
            local=self._local,
        )
        self._steers.taken_in(asked.previous)
        return run

    async def _follow(self, lane: _Lane, run: LiveRun) -> None:
        """Send the run's events as they are committed, until it has ended."""
        stream = run.stream
        assert stream is not None, "runs of a socket are streamed"
        async with aclosing(stream.follow(-1)) as frames:
            async for frame in frames:
                await self._steers.clear(run.id)
                if texts := socket_events(frame.body, lane.name):
                    await self._deliver({"type": "websocket.send", "texts": texts})
        await asyncio.shield(run.done)
        if run.state.ended is None:
            await self._write(error_event(run.failure or stopping(), lane.name))

    def _remember(self, run: LiveRun, lane: _Lane) -> None:
        self._past[run.id] = lane.name, run.state.ended.status if run.state.ended is not None else ""
        if len(self._past) > PAST_MAX:
            del self._past[next(iter(self._past))]

    async def _failed(self, lane: _Lane, previous: str) -> None:
        """A continuation failed: its own lane does not find the unstored response that it continued any more."""
        made_by, _ = self._past.get(previous, (lane.name, ""))
        if made_by == lane.name and self._local.evict(previous):
            await self._steers.give_back(lane.name, previous)

    async def _write(self, event: bytes) -> None:
        await self._deliver({"type": "websocket.send", "texts": [event]})

    async def _deliver(self, message: Message) -> None:
        """Returns when the socket has room for it. Raises _Gone when the client has gone."""
        try:
            await self._send(message)
        except OSError as error:  # what ASGI has a server raise then
            raise _Gone from error


class _Parent(msgspec.Struct):
    previous_response_id: Any = None


_DECODE_PARENT: Final = msgspec.json.Decoder(_Parent)


def _previous_in(body: bytes) -> str:
    """The response that a refused request would have continued."""
    try:
        previous = _DECODE_PARENT.decode(body).previous_response_id
    except (msgspec.DecodeError, RecursionError):
        return ""
    return previous if isinstance(previous, str) else ""
