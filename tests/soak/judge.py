"""What a soak comes to: does anything grow that must not, is anything left, did anything go wrong. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final

import msgspec

from tests.soak.samples import INDEX_TABLES, Sample

MIB: Final = 1024 * 1024
WARM_UP: Final = 0.25
"""Of a life, which does not count: caches fill, allocators take what they need."""
MEMORY_SHARE: Final = 0.03
MEMORY_LEAST: Final = 3 * MIB
"""What memory may grow by from the first to the last quarter after that: the larger of these."""
IDLE_MORE: Final = 3
"""By how much descriptors, tasks and threads of an idle server may differ: a connection or two is just being closed."""
LEFT: Final = frozenset(("file", "upload_part", "webhook_endpoint", "chat_metadata"))
"""Collections of records of which nothing may be left when clients have deleted what they made.

Nobody can delete a batch, an upload, a delivery or an idempotency key: they expire."""


class Verdict(msgspec.Struct, frozen=True):
    """One judgement."""

    what: str
    found: str
    allowed: str
    good: bool


def longest_life(samples: Sequence[Sample]) -> list[Sample]:
    """The samples of the process that lived longest."""
    lives: dict[int, list[Sample]] = {}
    for sample in samples:
        lives.setdefault(sample.life, []).append(sample)
    return max(lives.values(), key=lambda own: own[-1].at - own[0].at, default=[])


def judge_memory(samples: Sequence[Sample]) -> Verdict:
    """Resident memory of the longest life: its last quarter against its first, after the warm-up."""
    own = longest_life(samples)
    warm = [each for each in own if each.at >= own[0].at + WARM_UP * (own[-1].at - own[0].at)]
    part = max(1, len(warm) // 4)
    before, after = (median(each.rss for each in some) for some in (warm[:part], warm[-part:]))
    allowed = max(MEMORY_LEAST, MEMORY_SHARE * before)
    minutes = (warm[-1].at - warm[0].at) / 60
    return Verdict(
        f"memory over {minutes:.0f} minutes after the warm-up",
        f"{before / MIB:.1f} → {after / MIB:.1f} MiB",
        f"at most {allowed / MIB:.1f} MiB more",
        after - before <= allowed,
    )


def judge_idle(samples: Sequence[Sample]) -> list[Verdict]:
    """What an idle server holds, in its first pause and in its last."""
    idle = [each for each in longest_life(samples) if each.phase == "idle" and each.tasks]
    if len(idle) < 2:
        return [Verdict("idle server", "too few pauses to compare", "two", good=False)]
    first, last = idle[0], idle[-1]
    return [
        Verdict(
            f"{name} of the idle server, first and last pause",
            f"{getattr(first, name)} → {getattr(last, name)}",
            f"at most {IDLE_MORE} more",
            getattr(last, name) <= getattr(first, name) + IDLE_MORE,
        )
        for name in ("tasks", "descriptors", "threads")
    ]


def judge_left(tables: dict[str, int], collections: dict[str, int], open_runs: int, blobs: int) -> list[Verdict]:
    """What is left when every client has deleted what it made."""
    left = {name: count for name, count in tables.items() if name in INDEX_TABLES and count}
    left |= {name: count for name, count in collections.items() if name in LEFT and count}
    if blobs:
        left["blobs"] = blobs
    return [
        Verdict("runs that are open after the drain", str(open_runs), "0", open_runs == 0),
        Verdict("rows and blobs left when all is deleted", str(left or "none"), "none", not left),
    ]


def judge_findings(findings: Sequence[str], done: int, excused: int) -> Verdict:
    """What went wrong while no fault went on."""
    found = f"{len(findings)} of {done} ({excused} more during faults)"
    return Verdict("deeds of clients that went wrong", found, "0", not findings)
