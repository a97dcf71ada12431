"""Steering over a WebSocket: what was said to a connection's responses, and what its client is told of that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import msgspec

from stateroom import ids
from stateroom.errors import InvalidRequest, StateroomError
from stateroom.runtime.live import LiveRun
from stateroom.runtime.steering import Steering, awaits_client, refused
from stateroom.wire.decoding import Bounds
from stateroom.wire.sockets import SteerRequest, steer_accepted, steer_failed, steer_items, steer_pending

SAID_BYTES: Final = 1_024
"""What it takes to remember something that was said, beside it."""

Write: TypeAlias = Callable[[bytes], Awaitable[None]]


class _Said(msgspec.Struct, frozen=True):
    """What was said to a response and is part of no other one yet."""

    id: str
    request: SteerRequest

    @property
    def size(self) -> int:
        return len(bytes(self.request.input)) + SAID_BYTES


class Steers:
    """Those of one connection. Its events have numbers of their own: they are part of no response's stream."""

    __slots__ = ("_accepting", "_bounds", "_number", "_said", "_write")

    def __init__(self, write: Write, bounds: Bounds) -> None:
        self._write = write
        self._bounds = bounds
        self._said: dict[str, list[_Said]] = {}
        """By the response that it was said to: one that goes on, or that waits for its client's results."""
        self._accepting: dict[str, asyncio.Future[None]] = {}
        self._number = 0

    async def clear(self, run_id: str) -> None:
        """Nothing of a response is to be sent until it is told that something said to it was accepted."""
        while (accepting := self._accepting.get(run_id)) is not None:
            await accepting

    async def steer(self, steering: Steering, run: LiveRun, lane: str, request: SteerRequest, bytes_max: int) -> None:
        """Say something to a response that goes on, and tell what came of it."""
        said = _Said(ids.new_id("steer"), request)
        accepting = self._accepting[run.id] = asyncio.get_running_loop().create_future()
        try:
            waiting = sum(each.size for said_to in self._said.values() for each in said_to)
            if waiting and waiting + said.size > bytes_max:
                why = "cannot be told more: more than `limits.body_bytes` waits on this connection already"
                raise refused(run.id, "too_many_pending_steers", why)
            await steering.steer(run, said.id, steer_items(request, self._bounds))
            self._said.setdefault(run.id, []).append(said)
            await self._write(steer_accepted(self._next_number(), said.id, run.id, lane))
        except StateroomError as error:
            await self.fail(lane, request, error)
        finally:
            del self._accepting[run.id]
            accepting.set_result(None)
            run.interrupt_if_steered()

    async def refuse(self, lane: str, request: SteerRequest, status: str | None) -> None:
        """The response does not go on on this connection: it ended so, or nothing is known of it."""
        if status is None:
            error = refused(request.previous, "response_not_found", "is none that goes on on this connection")
        elif status == "completed":
            error = refused(request.previous, "response_already_completed", "has completed")
        else:
            error = refused(request.previous, "response_not_active", "does not go on any more")
        await self.fail(lane, request, error)

    async def fail(self, lane: str, request: SteerRequest, error: StateroomError) -> None:
        """Tell that the input was not taken, and why."""
        await self._write(steer_failed(self._next_number(), request, error, lane))

    async def tell(self, lane: str, run: LiveRun) -> None:
        """What has become of what was said to a response that has ended."""
        said = self._said.pop(run.id, [])
        if not said or run.successor is not None or run.state.ended is None:
            return  # its successor's first event tells that it was taken in
        if not awaits_client(run):
            await self._give_back(lane, said)
            return
        self._said[run.id] = said
        output = run.state.output[run.state.answer_start :]
        for each in said:
            await self._write(steer_pending(self._next_number(), each.id, run.id, lane, output))

    def taken_in(self, run_id: str) -> None:
        """A request of the client has continued the response, and what waited for that is part of it."""
        self._said.pop(run_id, None)

    async def give_back(self, lane: str, run_id: str) -> None:
        """The response cannot be continued any more."""
        await self._give_back(lane, self._said.pop(run_id, []))

    async def _give_back(self, lane: str, said: list[_Said]) -> None:
        error = InvalidRequest(
            "No response could be created that takes this in. Send it in a request of its own.",
            code="successor_creation_failed",
        )
        for each in said:
            await self._write(steer_failed(self._next_number(), each.request, error, lane, each.id))

    def _next_number(self) -> int:
        self._number += 1
        return self._number - 1
