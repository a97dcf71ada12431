"""The table: one row a figure, ours beside the budget and beside the model server called directly."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Final

import msgspec

_HEAD: Final = ("", "figure", "Stateroom", "budget", "model server directly", "more; least–most of the repeats")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure."""

    group: str
    figure: str
    unit: str
    value: float
    budget: float | None = None
    """At most this; None: no budget is set."""
    values: list[float] = []
    """The repeats whose median `value` is."""
    direct: str = ""
    beside: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.budget is None else self.value <= self.budget

    def cells(self) -> tuple[str, ...]:
        mark = {True: "✓", False: "✗", None: " "}[self.met]
        budget = "" if self.budget is None else f"≤ {number(self.budget)} {self.unit}"
        return mark, self.figure, f"{number(self.value)} {self.unit}", budget, self.direct, self.beside


def number(value: float) -> str:
    """Two or three digits that count, or all of a whole number."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:.2f}".removesuffix(".00") if abs(value) >= 0.1 else f"{value:.2g}"


def spread(values: Sequence[float]) -> str:
    """From the least to the most of the repeats."""
    return f"{number(min(values))}–{number(max(values))}" if len(values) > 1 else ""


def render(rows: Sequence[Row], facts: dict[str, str]) -> str:
    """The whole table as text, with where it was measured above and what misses its budget below."""
    width = max(len(name) for name in facts) + 2
    lines = [f"{name:<{width}}{value}" for name, value in facts.items()]
    table = [_HEAD, *(row.cells() for row in rows)]
    widths = [max(_width(row[column]) for row in table) for column in range(len(_HEAD))]
    groups = ["", *(row.group for row in rows)]
    current = ""
    for cells, group in zip(table, groups, strict=True):
        if group != current:
            current = group
            lines += ["", f"  {group}"]
        elif not group:
            lines.append("")
        padded = [cell + " " * (size - _width(cell)) for cell, size in zip(cells, widths, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([*lines, "", verdict(rows)])


def verdict(rows: Sequence[Row]) -> str:
    """How many budgets are met, and which are not."""
    judged = [row for row in rows if row.met is not None]
    missed = [row for row in judged if not row.met]
    if not judged:
        return "No budget is set for these."
    if not missed:
        return f"All {len(judged)} budgets are met." if len(judged) > 1 else "The only budget is met."
    over = [f"{row.group}, {row.figure}: {row.value / row.budget:.1f} x" for row in missed if row.budget]
    return f"{len(missed)} of {len(judged)} budgets are missed: " + "; ".join(over) + "."


def _width(text: str) -> int:
    return sum(0 if unicodedata.combining(char) else 1 for char in text)
