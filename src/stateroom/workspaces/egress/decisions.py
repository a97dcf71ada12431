"""What the proxy of each workspace has decided, in memory until it was written down: where to, how, why, and when.

The same decision again is counted. What a sandbox tries is its own choice, so that there is a bound: what was decided
longest ago makes room. Nothing of a request is here but the host and the port.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from stateroom import ids
from stateroom.clock import Clock

DECISIONS_MAX: Final = 100
"""Different ones of a workspace between two times that they are written down."""
Verdict: TypeAlias = Literal["allowed", "refused", "failed"]


class Decision(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether something could be reached."""

    id: str
    domain: str
    """'-': it was not said so that it could be understood."""
    port: int
    verdict: Verdict
    reason: str
    first_at: int
    """Milliseconds since the epoch."""
    last_at: int
    count: int = 1


_Key: TypeAlias = tuple[str, int, str, str]


class Decisions:
    """Those of all workspaces that nobody has written down."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[str, dict[_Key, Decision]] = {}
        self._sealed: dict[str, tuple[Decision, ...]] = {}

    def add(self, workspace_id: str, domain: str, port: int, verdict: Verdict, reason: str) -> None:
        now, key = int(self._clock.now() * 1000), (domain, port, verdict, reason)
        held = self._open.setdefault(workspace_id, {})
        before = held.pop(key, None)
        if before is None:
            held[key] = Decision(ids.new_id("egr"), domain, port, verdict, reason, now, now)
        else:
            held[key] = msgspec.structs.replace(before, last_at=now, count=before.count + 1)
        if len(held) > DECISIONS_MAX:
            del held[next(iter(held))]

    def of(self, workspace_id: str) -> tuple[Decision, ...]:
        """Those of a workspace, in the order in which each was decided last."""
        return (*self._sealed.get(workspace_id, ()), *self._open.get(workspace_id, {}).values())

    def seal(self, workspace_id: str) -> tuple[Decision, ...]:
        """The same, to be written down: they change no more. `written` lets go of them."""
        sealed = self.of(workspace_id)[-DECISIONS_MAX:]
        self._open.pop(workspace_id, None)
        if sealed:
            self._sealed[workspace_id] = sealed
        return sealed

    def written(self, workspace_id: str, sealed: tuple[Decision, ...]) -> None:
        """These were."""
        if sealed and self._sealed.get(workspace_id) == sealed:
            del self._sealed[workspace_id]

    def forget(self, workspace_id: str) -> None:
        self._open.pop(workspace_id, None)
        self._sealed.pop(workspace_id, None)
