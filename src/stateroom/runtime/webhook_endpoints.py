"""Webhook endpoints: who asked to be told of what, where, and with which secrets that is signed.

All of them are in memory, since every event asks for them.
"""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeAlias

import msgspec

from stateroom import ids
from stateroom.access.outbound import OutboundGuard
from stateroom.access.sealing import Sealer
from stateroom.clock import Clock
from stateroom.errors import InvalidRequest, NotFound
from stateroom.journal.entries import Fact
from stateroom.runtime.cursors import check_cursors
from stateroom.runtime.records import Held, Records

EVENT_TYPES: Final = (
    "response.completed",
    "response.failed",
    "response.incomplete",
    "response.cancelled",
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
)
"""What this server tells of."""

ENDPOINTS_MAX: Final = 64
"""Endpoints of one project."""
OLD_SECRET_SECONDS: Final = 24 * 3_600


class Secret(msgspec.Struct, frozen=True, omit_defaults=True):
    """A signing secret, sealed."""

    sealed: str
    until: int = 0
    """Milliseconds since the epoch after which it signs no more; 0: the current one."""


class Endpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """State of the collection `webhook_endpoint`."""

    name: str
    url: str
    event_types: tuple[str, ...]
    secrets: tuple[Secret, ...]
    """The current one first."""
    hint: str
    """The end of the current secret."""
    updated_at: int
    """Milliseconds since the epoch."""


_Change: TypeAlias = Callable[[Held[Endpoint]], Endpoint | None]


class Endpoints:
    """The endpoints of all projects."""

    def __init__(self, records: Records, guard: OutboundGuard, sealer: Sealer, clock: Clock) -> None:
        self._endpoints = records.collection("webhook_endpoint", Endpoint)
        self._guard = guard
        self._sealer = sealer
        self._clock = clock
        self._known: dict[str, dict[str, Held[Endpoint]]] = defaultdict(dict)
        """Every endpoint, by project and id."""

    async def start(self) -> None:
        """Take up what there is."""
        for endpoint in await self._endpoints.open():
            self._known[endpoint.project][endpoint.id] = endpoint

    async def create(
        self, project: str, *, name: str, url: str, event_types: Sequence[str], also: Sequence[Fact] = (), key: str
    ) -> tuple[Held[Endpoint], str]:
        """A new endpoint of this id, and its secret, which is shown this once. Raises InvalidRequest."""
        self._check(url, event_types)
        if len(self._known[project]) >= ENDPOINTS_MAX:
            message = f"A project has at most {ENDPOINTS_MAX} webhook endpoints. Delete one first."
            raise InvalidRequest(message, code="too_many_webhook_endpoints")
        secret, sealed = self._new_secret(project)
        state = Endpoint(name, url, _unique(event_types), (sealed,), secret[-4:], self._now())
        held = await self._endpoints.create(project, key, state, open=True, also=also)
        self._known[project][held.id] = held
        return held, secret

    def get(self, project: str, endpoint_id: str) -> Held[Endpoint]:
        """Raises NotFound."""
        held = self.find(project, endpoint_id)
        if held is None:
            message = f"Webhook endpoint with id '{endpoint_id}' not found."
            raise NotFound(message, code="webhook_endpoint_not_found", param="webhook_endpoint_id")
        return held

    async def page(
        self, project: str, *, after: str, before: str = "", limit: int, descending: bool
    ) -> list[Held[Endpoint]]:
        """By age, one more than `limit` when there are more. Raises InvalidRequest on unknown cursors."""
        await check_cursors(partial(self._endpoints.get, project), "webhook endpoint", after=after, before=before)
        return await self._endpoints.page(project, after=after, before=before, limit=limit, descending=descending)

    async def update(
        self,
        project: str,
        endpoint_id: str,
        *,
        name: str | None = None,
        url: str | None = None,
        event_types: Sequence[str] | None = None,
    ) -> Held[Endpoint]:
        """Change what is given. Raises NotFound, InvalidRequest."""
        self._check(url, event_types or ())

        def change(held: Held[Endpoint]) -> Endpoint | None:
            old = held.state
            new = msgspec.structs.replace(
                old,
                name=old.name if name is None else name,
                url=old.url if url is None else url,
                event_types=old.event_types if event_types is None else _unique(event_types),
            )
            return None if new == old else msgspec.structs.replace(new, updated_at=self._now())

        return await self._change(project, endpoint_id, change)

    async def rotate(self, project: str, endpoint_id: str, *, keep_old: bool) -> tuple[Held[Endpoint], str]:
        """A new secret; the old one signs beside it for another day if that is asked for. Raises NotFound."""
        secret, sealed = self._new_secret(project)

        def change(held: Held[Endpoint]) -> Endpoint:
            now = self._now()
            kept = tuple(
                Secret(old.sealed, old.until or now + OLD_SECRET_SECONDS * 1000)
                for old in held.state.secrets
                if keep_old and (not old.until or old.until > now)
            )
            return msgspec.structs.replace(held.state, secrets=(sealed, *kept), hint=secret[-4:], updated_at=now)

        return await self._change(project, endpoint_id, change), secret

    async def delete(self, project: str, endpoint_id: str) -> None:
        """Erase an endpoint; what was still to be delivered to it is not. Raises NotFound."""
        self.get(project, endpoint_id)
        await self._endpoints.drop(project, endpoint_id)
        self._known[project].pop(endpoint_id, None)

    def find(self, project: str, endpoint_id: str) -> Held[Endpoint] | None:
        return self._known[project].get(endpoint_id) if project in self._known else None

    def told_of(self, project: str, event_type: str) -> list[Held[Endpoint]]:
        """Those that asked to be told of such an event."""
        if project not in self._known:
            return []
        return [endpoint for endpoint in self._known[project].values() if event_type in endpoint.state.event_types]

    def secrets(self, project: str, endpoint: Endpoint) -> list[str]:
        """With which it is signed now."""
        now = self._now()
        current = [each.sealed for each in endpoint.secrets if not each.until or each.until > now]
        return [secret for sealed in current if (secret := self._sealer.open(project, sealed))]

    def check_events(self, event_types: Sequence[str]) -> None:
        """Raises InvalidRequest."""
        for position, event_type in enumerate(event_types):
            if event_type not in EVENT_TYPES:
                message = (
                    f"This server has no events of type {event_type[:100]!r}. It tells of {', '.join(EVENT_TYPES)}."
                )
                raise InvalidRequest(message, code="unknown_event_type", param=f"event_types[{position}]")

    def _check(self, url: str | None, event_types: Sequence[str]) -> None:
        self.check_events(event_types)
        if url is not None:
            self._guard.check(url, param="url", https=True)

    def _new_secret(self, project: str) -> tuple[str, Secret]:
        secret = "whsec_" + base64.b64encode(ids.new_secret().encode()).decode()
        return secret, Secret(self._sealer.seal(project, secret))

    async def _change(self, project: str, endpoint_id: str, change: _Change) -> Held[Endpoint]:
        self.get(project, endpoint_id)
        held = await self._endpoints.update(project, endpoint_id, change)
        if held is None:
            self._known[project].pop(endpoint_id, None)
            return self.get(project, endpoint_id)
        self._known[project][endpoint_id] = held
        return held

    def _now(self) -> int:
        return int(self._clock.now() * 1000)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
