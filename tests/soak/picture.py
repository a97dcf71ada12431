"""The curve of a soak as an SVG: panels one below the other over the same minutes, with the faults marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Final

import msgspec

from tests.soak.judge import MIB
from tests.soak.samples import Sample

WIDTH: Final = 960
LEFT: Final = 64
RIGHT: Final = 160
PANEL: Final = 92
GAP: Final = 30
TOP: Final = 72
COLOURS: Final = ("#2563eb", "#d97706", "#059669")
FAULTS: Final = {
    "kill": "#dc2626",
    "cut backend": "#7c3aed",
    "slow disk": "#b45309",
    "filling": "#0891b2",
    "idle": "#9ca3af",
}
STYLE: Final = """
  text { font: 12px system-ui, sans-serif; fill: #374151 }
  .title { font-weight: 600 } .small { font-size: 10px; fill: #6b7280 }
  .frame { fill: none; stroke: #d1d5db } .line { fill: none; stroke-width: 1.3 }
"""


class Event(msgspec.Struct, frozen=True):
    """A fault, or a pause."""

    at: float
    until: float
    what: str


class Line(msgspec.Struct, frozen=True):
    name: str
    value: Callable[[Sample], float]
    zero: bool = False
    """Whether 0 is a value, and not the lack of one."""


PANELS: Final[tuple[tuple[str, tuple[Line, ...]], ...]] = (
    ("Resident memory, MiB", (Line("server", lambda each: each.rss / MIB),)),
    (
        "Descriptors, tasks, threads",
        (
            Line("descriptors", lambda each: each.descriptors),
            Line("tasks", lambda each: each.tasks),
            Line("threads", lambda each: each.threads),
        ),
    ),
    ("Open runs", (Line("open runs", lambda each: each.open_runs, zero=True),)),
    (
        "A short answer, ms",
        (Line("p50", lambda each: each.p50 * 1000), Line("p99", lambda each: each.p99 * 1000)),
    ),
    (
        "Files, MiB",
        (Line("journal", lambda each: each.journal / MIB), Line("its log", lambda each: each.wal / MIB, zero=True)),
    ),
)


def draw(title: str, samples: Sequence[Sample], events: Sequence[Event]) -> str:
    """The whole picture."""
    end = max(each.at for each in samples)
    height = TOP + len(PANELS) * (PANEL + GAP) + 14
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>',
        *_legend(events),
    ]
    for number, (name, lines) in enumerate(PANELS):
        parts += _panel(name, lines, samples, events, end, TOP + number * (PANEL + GAP))
    parts += [
        f'<text class="small" x="{_x(minute * 60, end):.0f}" y="{height - 14}" text-anchor="middle">{minute} min</text>'
        for minute in _ticks(end / 60)
    ]
    return "\n".join([*parts, "</svg>", ""])


def _legend(events: Sequence[Event]) -> list[str]:
    parts, x = [], LEFT
    for what in [each for each in FAULTS if any(event.what == each for event in events)]:
        shown = {"idle": "pause", "filling": "caches are filled"}.get(what, what)
        parts.append(f'<rect x="{x}" y="31" width="10" height="10" fill="{FAULTS[what]}" opacity="0.6"/>')
        parts.append(f'<text class="small" x="{x + 14}" y="40">{escape(shown)}</text>')
        x += 34 + 7 * len(shown)
    return parts


def _panel(
    name: str, lines: Sequence[Line], samples: Sequence[Sample], events: Sequence[Event], end: float, top: int
) -> list[str]:
    most = _round_up(max([1.0, *(line.value(each) for line in lines for each in samples)]))
    parts = [
        f'<rect x="{_x(event.at, end):.1f}" y="{top}" width="{max(1.5, _x(event.until, end) - _x(event.at, end)):.1f}" '
        f'height="{PANEL}" fill="{FAULTS[event.what]}" opacity="{0.6 if event.what == "kill" else 0.22}"/>'
        for event in events
    ]
    parts.append(f'<rect class="frame" x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" height="{PANEL}"/>')
    parts.append(f'<text class="small" x="{LEFT - 6}" y="{top + 9}" text-anchor="end">{_short(most)}</text>')
    parts.append(f'<text class="small" x="{LEFT - 6}" y="{top + PANEL}" text-anchor="end">0</text>')
    parts.append(f'<text x="{LEFT}" y="{top - 5}">{escape(name)}</text>')
    for colour, line in zip(COLOURS, lines, strict=False):
        parts += _curves(line, samples, end, top, most, colour)
    for number, (colour, line) in enumerate(zip(COLOURS, lines, strict=False)):
        values = [line.value(each) for each in samples if line.value(each) > 0 or line.zero] or [0.0]
        text = f"{line.name}: at most {_short(max(values))}"
        x, y = WIDTH - RIGHT + 8, top + 14 + 16 * number
        parts.append(f'<text class="small" x="{x}" y="{y}" style="fill:{colour}">{escape(text)}</text>')
    return parts


def _curves(line: Line, samples: Sequence[Sample], end: float, top: int, most: float, colour: str) -> list[str]:
    """Strokes that end where a life does, and where there is nothing to be shown."""
    strokes: list[list[Sample]] = [[]]
    for each in samples:
        if strokes[-1] and strokes[-1][-1].life != each.life:
            strokes.append([])
        if line.value(each) > 0 or line.zero:
            strokes[-1].append(each)
        elif strokes[-1]:
            strokes.append([])
    parts = []
    for stroke in strokes:
        points = [f"{_x(each.at, end):.1f},{top + PANEL - PANEL * line.value(each) / most:.1f}" for each in stroke]
        parts += [f'<polyline class="line" stroke="{colour}" points="{" ".join(points)}"/>'] if points else []
    return parts


def _x(at: float, end: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * at / end


def _round_up(value: float) -> float:
    """The next number that is easy to read."""
    size = 10.0 ** (len(str(int(value))) - 1)
    return next(step * size for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * size >= value)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ticks(minutes: float) -> list[int]:
    step = next(step for step in (1, 2, 5, 10, 15, 30, 60, 120, 240) if minutes / step <= 12)
    return list(range(0, int(minutes) + 1, step))
