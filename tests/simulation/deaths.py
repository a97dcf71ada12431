"""How rounds of the crash suite die: at which point or moment, and what is killed besides the server."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from stateroom.testing.kill_points import VICTIMS

POINTS: Final[dict[str, int]] = {
    "before_commit": 120,
    "after_commit": 120,
    "before_start": 20,
    "after_start": 20,
    "before_item": 20,
    "after_item": 20,
    "before_frames": 150,
    "after_frames": 150,
    "publish": 150,
    "sent": 150,
    "mid_stream": 150,
    "before_intent": 4,
    "after_intent": 4,
    "before_effect": 4,
    "mid_effect": 4,
    "after_effect": 4,
    "before_outcome": 4,
    "after_outcome": 4,
    "before_end": 20,
    "after_end": 20,
    "before_items": 3,
    "after_items": 3,
    "before_conversation": 3,
    "after_conversation": 3,
    "before_deletion": 2,
    "after_deletion": 2,
    "before_redact": 3,
    "after_redact": 3,
    "before_steer": 2,
    "after_steer": 2,
    "before_compaction": 2,
    "after_compaction": 2,
    "before_put_file": 6,
    "after_put_file": 6,
    "before_drop_file": 3,
    "after_drop_file": 3,
    "before_put_upload": 6,
    "after_put_upload": 6,
    "before_put_upload_part": 8,
    "after_put_upload_part": 8,
    "before_drop_upload_part": 6,
    "after_drop_upload_part": 6,
    "before_put_batch": 8,
    "after_put_batch": 8,
    "before_note_batch": 12,
    "after_note_batch": 12,
    "before_put_idempotency": 8,
    "after_put_idempotency": 8,
    "before_put_webhook_delivery": 12,
    "after_put_webhook_delivery": 12,
    "before_put_webhook_endpoint": 2,
    "after_put_webhook_endpoint": 2,
    "before_put_chat_metadata": 2,
    "after_put_chat_metadata": 2,
}
"""Where to die while clients are at work, and at which passing at the latest."""

RECOVERY_POINTS: Final[dict[str, int]] = {
    "before_take_up": 4,
    "after_take_up": 4,
    "before_commit": 12,
    "after_commit": 12,
    "before_frames": 8,
    "before_outcome": 1,
    "after_end": 4,
    "before_note_batch": 3,
    "after_note_batch": 3,
    "after_put_batch": 2,
    "before_put_webhook_delivery": 3,
    "after_put_webhook_delivery": 3,
    "before_compaction": 1,
    "before_redact": 1,
}
"""Where to die while a new server takes up what the dead one left."""


WORK_POINTS: Final[dict[str, int]] = {
    "before_intent": 12,
    "after_intent": 12,
    "before_start_sandbox": 6,
    "after_start_sandbox": 6,
    "before_command": 16,
    "mid_command": 16,
    "after_command": 16,
    "before_write": 8,
    "after_write": 8,
    "before_outcome": 12,
    "after_outcome": 12,
    "before_freeze": 10,
    "after_freeze": 10,
    "before_content": 10,
    "after_content": 10,
    "after_snapshot": 10,
    "before_put_container": 12,
    "after_put_container": 12,
    "before_note_container": 12,
    "after_note_container": 12,
    "before_kept": 10,
    "after_kept": 10,
    "before_end": 8,
    "after_end": 8,
    "before_materialise": 3,
    "mid_materialise": 4,
    "after_materialise": 3,
    "before_discard": 2,
    "after_discard": 2,
    "before_drop_container": 1,
    "after_drop_container": 1,
    "before_sweep": 1,
    "mid_sweep": 1,
    "after_sweep": 2,
}
"""The same while containers are worked in."""

WORK_RECOVERY_POINTS: Final[dict[str, int]] = {
    "before_take_up": 2,
    "after_take_up": 2,
    "before_outcome": 1,
    "after_outcome": 1,
    "before_content": 2,
    "after_content": 2,
    "after_snapshot": 2,
    "after_note_container": 2,
    "before_kept": 1,
    "after_kept": 1,
    "before_end": 2,
    "mid_materialise": 1,
    "before_sweep": 1,
    "after_sweep": 1,
}

STRIKE_POINTS: Final = (
    *("before_command", "mid_command", "mid_command", "after_command", "after_start_sandbox", "before_freeze"),
    *("after_freeze", "after_snapshot", "before_kept", "after_intent", "before_outcome"),
)
"""Where a sandbox is hit while its server goes on."""


@dataclass(frozen=True)
class Plan:
    """How one round dies."""

    manner: str
    """`time`, `client`, or a kill point."""
    count: int = 1
    seconds: float = 0.0
    actors: int = 8
    again: tuple[str, ...] = ()
    """Deaths of the next servers while they recover: `POINT:N`, or seconds after their start."""
    at_work: bool = False
    """Hosted tools work in containers."""
    strikes: tuple[str, ...] = ()
    """What is killed in sandboxes before the server dies: `POINT:N@VICTIM`."""
    sabotaged: bool = False
    """Processes of sandboxes are killed at random moments as well."""

    @classmethod
    def draw(cls, rng: random.Random, number: int) -> Plan:
        """A plan; every kill point has its turn before any comes twice."""
        actors = rng.randint(4, 12)
        again = tuple(_again(rng, RECOVERY_POINTS) for _ in range(rng.choice((0, 0, 0, 1, 1, 2, 3))))
        names = list(POINTS)
        random.Random(number // (2 * len(names))).shuffle(names)
        turn = number % (2 * len(names))
        if turn % 2:
            name = names[turn // 2]
            return cls(name, rng.randint(1, POINTS[name]), actors=actors, again=again)
        if rng.random() < 0.15:
            return cls("client", actors=actors, again=again)
        return cls("time", seconds=rng.uniform(0.02, 0.9), actors=actors, again=again)

    @classmethod
    def draw_at_work(cls, rng: random.Random, number: int) -> Plan:
        """The same while containers are worked in; three rounds of four die at a point."""
        names = list(WORK_POINTS)
        random.Random(number // len(names)).shuffle(names)
        name = names[number % len(names)]
        by_point = rng.random() < 0.75
        return cls(
            name if by_point else "time",
            rng.randint(1, WORK_POINTS[name]) if by_point else 1,
            seconds=rng.uniform(0.1, 2.5),
            actors=rng.randint(3, 8),
            again=tuple(_again(rng, WORK_RECOVERY_POINTS) for _ in range(rng.choice((0, 0, 0, 1, 1, 2)))),
            at_work=True,
            strikes=tuple(_strike(rng) for _ in range(rng.choice((0, 0, 1, 2, 3)))),
            sabotaged=rng.random() < 0.4,
        )

    def __str__(self) -> str:
        how = {"time": f"{self.seconds:.2f} s", "client": "client"}.get(self.manner, f"{self.manner}:{self.count}")
        before = " and ".join((*self.strikes, *(("sabotage",) if self.sabotaged else ())))
        return " then ".join((*([before] if before else []), how, *self.again))


def _again(rng: random.Random, points: dict[str, int]) -> str:
    if rng.random() < 0.4:
        return f"{rng.uniform(0.3, 0.9):.2f}"
    name = rng.choice(list(points))
    return f"{name}:{rng.randint(1, points[name])}"


def _strike(rng: random.Random) -> str:
    return f"{rng.choice(STRIKE_POINTS)}:{rng.randint(1, 10)}@{rng.choice(VICTIMS)}"
