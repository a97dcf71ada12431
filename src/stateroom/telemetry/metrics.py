"""Counters and histograms that cost next to nothing: plain numbers, added to where things happen, read when asked for.

One thread adds to each of them. Label values come from fixed words, the settings and the backends' own model names;
what is more than `SERIES_MAX` of them is counted together as `other`, so that nobody can make the memory grow.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from typing import Final, TypeAlias

Labels: TypeAlias = tuple[str, ...]

SERIES_MAX: Final = 512
"""Combinations of label values of one metric."""

OTHER: Final = "other"

FAST: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Buckets of what the disk does, in seconds."""
SLOW: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Buckets of what models do, in seconds."""

_CODE: Final = re.compile(r"[a-z][a-z0-9_.]{0,63}")


class Counter:
    """How often something happened, by label values."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        values = self.values
        if labels in values:
            values[labels] += amount
        elif len(values) < SERIES_MAX:
            values[labels] = amount
        else:
            rest = (OTHER,) * len(labels)
            values[rest] = values.get(rest, 0) + amount


class Histogram:
    """How long something took: counts by bucket, and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SLOW) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Histograms:
    """The same by label values."""

    __slots__ = ("bounds", "values")

    def __init__(self, bounds: tuple[float, ...] = SLOW) -> None:
        self.bounds = bounds
        self.values: dict[Labels, Histogram] = {}

    def observe(self, labels: Labels, value: float) -> None:
        found = self.values.get(labels)
        if found is None:
            if len(self.values) >= SERIES_MAX:
                labels = (OTHER,) * len(labels)
            found = self.values.setdefault(labels, Histogram(self.bounds))
        found.observe(value)


class CommitMeter:
    """What the journal's writer thread did."""

    __slots__ = ("changes", "commit_seconds", "failures", "wait_seconds")

    def __init__(self) -> None:
        self.changes = 0
        self.failures = 0
        self.commit_seconds = Histogram(FAST)
        self.wait_seconds = Histogram(FAST)
        """Of the change that had waited longest, for each commit."""


class WorkspaceMeter:
    """What was done to workspaces: starts of their processes, ends for a limit, commits of their files."""

    __slots__ = ("breaches", "commit_bytes", "commit_seconds", "commits", "start_seconds", "starts")

    def __init__(self) -> None:
        self.starts = Counter()
        """By driver, and outcome: ok, or the error's code."""
        self.start_seconds = Histogram()
        self.breaches = 0
        self.commits = 0
        self.commit_bytes = 0
        self.commit_seconds = Histogram()


def code_label(code: str) -> str:
    """An error's code as a label: one of ours, or a model server's that is a plain word."""
    return code if _CODE.fullmatch(code) else OTHER
