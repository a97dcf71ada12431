"""The table of peers: a line a figure, a column a contender, theirs also as a multiple of ours."""

from __future__ import annotations

import statistics
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from benchmarks.table import number, spread

NONE: Final = "–"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of one contender."""

    group: str
    figure: str
    unit: str = ""
    values: list[float] = []
    """The repeats, whose median counts; none: it is not a number."""
    beside: str = ""

    @property
    def value(self) -> float | None:
        return statistics.median(self.values) if self.values else None


Found = Mapping[str, Sequence[Figure]]
"""By the contender's name; the first is ours. A contender that was not measured has nothing."""


def render(found: Found, facts: Mapping[str, str], notes: Sequence[str]) -> str:
    """The whole table as text: where it was measured above, what went wrong below."""
    width = max(len(name) for name in facts) + 2
    head = [f"{name:<{width}}{value}" for name, value in facts.items()]
    names = list(found)
    lines = [["", *names]]
    groups = [""]
    for group, figure in _order(found):
        lines.append([f"    {figure}", *(_cell(found, name, group, figure) for name in names)])
        groups.append(group)
    widths = [max(_width(line[column]) for line in lines) for column in range(len(names) + 1)]
    body: list[str] = [""]
    current = ""
    for line, group in zip(lines, groups, strict=True):
        if group != current:
            current = group
            body += ["", f"  {group}"]
        padded = [cell + " " * (size - _width(cell)) for cell, size in zip(line, widths, strict=True)]
        body.append("  ".join(padded).rstrip())
    return "\n".join([*head, *body, *(["", *notes] if notes else [])])


def _order(found: Found) -> list[tuple[str, str]]:
    """Groups and figures in the order in which they came first."""
    keys = list(dict.fromkeys((each.group, each.figure) for figures in found.values() for each in figures))
    groups = list(dict.fromkeys(group for group, _ in keys))
    return sorted(keys, key=lambda key: groups.index(key[0]))


def _cell(found: Found, name: str, group: str, figure: str) -> str:
    ours = _find(found, next(iter(found)), group, figure)
    this = _find(found, name, group, figure)
    if this is None:
        return NONE
    parts = []
    if this.value is not None:
        parts.append(f"{number(this.value)} {this.unit}".strip())
        if ours is not this and ours is not None and ours.value:
            parts.append(f"{number(this.value / ours.value)} x")
    if repeats := spread(this.values):
        parts.append(repeats)
    return ", ".join([*parts, *([this.beside] if this.beside else [])])


def _find(found: Found, name: str, group: str, figure: str) -> Figure | None:
    return next((each for each in found[name] if (each.group, each.figure) == (group, figure)), None)


def _width(text: str) -> int:
    return sum(0 if unicodedata.combining(char) else 1 for char in text)
