"""Webhooks: telling whoever asked for it of what happened, until they have heard it. Who that is: webhook_endpoints.py.

What is to be told is a record that is committed in the same append as the event itself, so that no crash can lose it.
A delivery is tried at once, and then again with growing pauses for three days. A receiver may hear of an event twice,
when the server dies between its answer and our note of it: `webhook-id` is the same then.

Deliveries are signed as the Standard Webhooks specification (version 1) has it: HMAC-SHA256 over id, time and body.
"""

from __future__ import annotations

import asyncio
import base64
import heapq
import hmac
import logging
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec

from stateroom import ids
from stateroom.access.outbound import OutboundGuard, OutboundRefused
from stateroom.access.sealing import Sealer
from stateroom.clock import Clock
from stateroom.errors import InvalidRequest, StorageError
from stateroom.journal.entries import Fact
from stateroom.runtime.cursors import check_cursors
from stateroom.runtime.records import Held, Records
from stateroom.runtime.webhook_endpoints import Endpoint, Endpoints

log = logging.getLogger("stateroom.webhooks")

PAUSES: Final = (5, 30, 120, 600, 1_800, 3_600, 3 * 3_600, 6 * 3_600, 12 * 3_600)
"""Seconds between one try and the next; the last one repeats."""
GIVE_UP_SECONDS: Final = 72 * 3_600
KEPT_SECONDS: Final = 7 * 24 * 3_600
"""How long it can be looked up what became of a delivery."""
AT_ONCE: Final = 32
"""Deliveries under way at the same time."""
AT_ONCE_PROJECT: Final = 16
"""Of one project. The next place goes to the project that has the fewest."""
AT_ONCE_EACH: Final = 4
"""To one endpoint: one that is slow must not keep the others waiting."""


class Delivery(msgspec.Struct, frozen=True, omit_defaults=True):
    """State of the collection `webhook_delivery`: one event for one endpoint. Open until it is through."""

    event: str
    """Id of the event, the same for all endpoints and all tries."""
    type: str
    subject: str
    """Id of what it is about."""
    endpoint: str
    at: int
    """When it happened, milliseconds since the epoch."""
    tries: int = 0
    next_at: int = 0
    """When it is to be tried again, milliseconds since the epoch."""
    status: str = "pending"
    """pending, delivered or failed."""
    answer: str = ""
    """What the last try came to: an HTTP status, or why there was none."""


class Webhooks:
    """The deliveries of all projects that are under way."""

    def __init__(self, records: Records, guard: OutboundGuard, sealer: Sealer, clock: Clock) -> None:
        self.endpoints = Endpoints(records, guard, sealer, clock)
        self._deliveries = records.collection("webhook_delivery", Delivery)
        self._guard = guard
        self._clock = clock
        self._due: list[tuple[int, str, str]] = []
        """Heap of (when, project, delivery)."""
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._ready: dict[str, deque[str]] = {}
        """Deliveries whose time has come, by project."""
        self._of_project: Counter[str] = Counter()
        """How many are under way."""
        self._of_endpoint: Counter[str] = Counter()
        self._behind: dict[str, deque[tuple[str, str]]] = {}
        """Deliveries, with their projects, that wait for others to the same endpoint."""

    async def test(self, project: str, endpoint_id: str, event_type: str) -> int:
        """Send a sample event now; the HTTP status of the answer. Raises NotFound, InvalidRequest."""
        held = self.endpoints.get(project, endpoint_id)
        self.endpoints.check_events([event_type])
        subject = ids.new_id("batch" if event_type.startswith("batch.") else "resp")
        sample = Delivery(ids.new_id("evt"), event_type, subject, endpoint_id, self._now())
        try:
            return await self._send(project, held.state, sample)
        except OutboundRefused as refused:
            raise InvalidRequest(refused.message, code="webhook_not_delivered", param="url") from None

    async def deliveries(
        self, project: str, *, after: str, before: str = "", limit: int, descending: bool
    ) -> list[Held[Delivery]]:
        """What became of the project's deliveries, by age, one more than `limit` when there are more.

        Raises InvalidRequest on unknown cursors.
        """
        await check_cursors(partial(self._deliveries.get, project), "webhook delivery", after=after, before=before)
        return await self._deliveries.page(project, after=after, before=before, limit=limit, descending=descending)

    # Deliveries

    @property
    def pending(self) -> int:
        """Deliveries that wait for a try, or for their next one."""
        ready = sum(len(waiting) for waiting in self._ready.values())
        return len(self._due) + ready + sum(len(waiting) for waiting in self._behind.values())

    def outgoing(self, project: str, event_type: str, subject: str) -> list[Fact]:
        """What has to be committed together with the event; give it to `sent` afterwards."""
        endpoints = self.endpoints.told_of(project, event_type)
        if not endpoints:
            return []
        event, now = ids.new_id("evt"), self._now()
        return [
            self._deliveries.put(
                ids.new_id("whd"), Delivery(event, event_type, subject, endpoint.id, now, next_at=now), open=True
            )
            for endpoint in endpoints
        ]

    def sent(self, project: str, records: Sequence[Fact]) -> None:
        """These are committed now: deliver them."""
        for record in records:
            self._plan(self._now(), project, getattr(record, "id", ""))

    async def start(self) -> None:
        """Take up what an earlier process left undelivered."""
        await self.endpoints.start()
        for delivery in await self._deliveries.open():
            self._plan(delivery.state.next_at, delivery.project, delivery.id)
        self._task = asyncio.get_running_loop().create_task(self._deliver())

    async def close(self) -> None:
        """Break off what is under way; it is tried again at the next start."""
        tasks = [*self._sending, *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _plan(self, at: int, project: str, delivery_id: str) -> None:
        heapq.heappush(self._due, (at, project, delivery_id))
        self._wake.set()

    async def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            now = self._now()
            while self._due and self._due[0][0] <= now:
                _, project, delivery_id = heapq.heappop(self._due)
                self._ready.setdefault(project, deque()).append(delivery_id)
            while (next_project := self._next_project()) is not None:
                task = loop.create_task(self._try(next_project, self._take_ready(next_project)))
                self._of_project[next_project] += 1
                self._sending.add(task)
                task.add_done_callback(partial(self._through, next_project))
            pause = (self._due[0][0] - now) / 1000 if self._due else None
            try:
                await asyncio.wait_for(self._wake.wait(), pause)
            except TimeoutError:
                continue

    def _next_project(self) -> str | None:
        """The project that has a delivery sent next; None when there is no place, or nothing to send."""
        if len(self._sending) >= AT_ONCE:
            return None
        able = [project for project in self._ready if self._of_project[project] < AT_ONCE_PROJECT]
        return min(able, key=self._of_project.__getitem__, default=None)

    def _take_ready(self, project: str) -> str:
        ready = self._ready[project]
        delivery_id = ready.popleft()
        if not ready:
            del self._ready[project]
        return delivery_id

    def _through(self, project: str, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        _decrease(self._of_project, project)
        self._wake.set()

    def _next_behind(self, endpoint_id: str) -> None:
        """Have the delivery come that waits next for this endpoint."""
        behind = self._behind.get(endpoint_id)
        if behind is None:
            return
        project, delivery_id = behind.popleft()
        if not behind:
            del self._behind[endpoint_id]
        self._plan(self._now(), project, delivery_id)

    async def _try(self, project: str, delivery_id: str) -> None:
        try:
            held = await self._deliveries.get(project, delivery_id)
            if held is None or not held.open:
                return
            endpoint = self.endpoints.find(project, held.state.endpoint)
            if endpoint is None:
                self._next_behind(held.state.endpoint)
                await self._deliveries.drop(project, delivery_id)
                return
            if self._of_endpoint[endpoint.id] >= AT_ONCE_EACH:
                # Its place is better used by another endpoint's; this one comes when one of those is through.
                self._behind.setdefault(endpoint.id, deque()).append((project, delivery_id))
                return
            self._of_endpoint[endpoint.id] += 1
            try:
                answer = await self._answer(project, endpoint.state, held.state)
            finally:
                _decrease(self._of_endpoint, endpoint.id)
                self._next_behind(endpoint.id)
            await self._note(project, held, answer)
        except StorageError as error:
            log.warning("webhook.not_noted delivery=%s code=%s", delivery_id, error.code)
            self._plan(self._now() + PAUSES[0] * 1000, project, delivery_id)
        except Exception:  # one delivery must not end them all; the trace is logged
            log.exception("webhook.broke delivery=%s", delivery_id)

    async def _answer(self, project: str, endpoint: Endpoint, delivery: Delivery) -> str:
        """What a try came to: an HTTP status, or why there was none."""
        try:
            return str(await self._send(project, endpoint, delivery))
        except OutboundRefused as refused:
            return refused.reason

    async def _note(self, project: str, held: Held[Delivery], answer: str) -> None:
        """Write down what came of a try, and plan the next one."""
        delivered = answer.isdigit() and 200 <= int(answer) < 300
        now, tries = self._now(), held.state.tries + 1
        pause = PAUSES[min(tries, len(PAUSES)) - 1] * (0.9 + 0.2 * ids.chance())
        next_at = now + int(pause * 1000)
        over = not delivered and next_at > held.state.at + GIVE_UP_SECONDS * 1000
        status = "delivered" if delivered else "failed" if over else "pending"
        left = status == "pending"

        def change(old: Held[Delivery]) -> Delivery:
            return msgspec.structs.replace(
                old.state, tries=tries, next_at=next_at if left else 0, status=status, answer=answer
            )

        expires_at = 0 if left else now + KEPT_SECONDS * 1000
        await self._deliveries.update(project, held.id, change, open=left, expires_at=expires_at)
        if left:
            self._plan(next_at, project, held.id)
        log.log(
            logging.INFO if delivered else logging.WARNING,
            "webhook.%s delivery=%s type=%s endpoint=%s tries=%d answer=%s",
            status if not left else "not_delivered",
            held.id,
            held.state.type,
            held.state.endpoint,
            tries,
            answer,
        )

    async def _send(self, project: str, endpoint: Endpoint, delivery: Delivery) -> int:
        body = msgspec.json.encode(
            {
                "id": delivery.event,
                "object": "event",
                "created_at": delivery.at // 1000,
                "type": delivery.type,
                "data": {"id": delivery.subject},
            }
        )
        headers = signature(delivery.event, self._now() // 1000, body, self.endpoints.secrets(project, endpoint))
        return await self._guard.post(endpoint.url, body, headers)

    def _now(self) -> int:
        return int(self._clock.now() * 1000)


def signature(event: str, at: int, body: bytes, secrets: Sequence[str]) -> dict[str, str]:
    """The headers of a delivery: one signature for each secret. `at` is in seconds since the epoch."""
    said = b"%s.%d.%s" % (event.encode(), at, body)
    signatures = [
        base64.b64encode(hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), said, "sha256")).decode()
        for secret in secrets
    ]
    return {
        "webhook-id": event,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{each}" for each in signatures),
    }


def _decrease(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
