"""What the commands say: designed with rich on a terminal, plain lines everywhere else.

Rich is loaded only when something is drawn on a terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, TextIO

import msgspec
import typer

_UNSAFE = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""Control characters: what a model or a stranger wrote must not steer the terminal."""


def safe(text: str) -> str:
    """The text without control characters, line breaks and tabs apart."""
    return text.translate(_UNSAFE)


def one_line(text: str, width: int = 60) -> str:
    """The beginning of a text on one line."""
    flat = " ".join(safe(text).split())
    return flat if len(flat) <= width else f"{flat[: width - 1]}…"


def is_terminal(stream: TextIO | None = None) -> bool:
    return (stream or sys.stdout).isatty()


def say(text: str = "", *, style: str = "", end: str = "\n", err: bool = False) -> None:
    """Write text; `style` (dim, red, green, yellow, cyan, bold) shows on terminals only, and not under NO_COLOR."""
    styles: dict[str, Any] = {}
    for word in style.split() if not os.environ.get("NO_COLOR") else ():
        styles.update({word: True} if word in ("dim", "bold") else {"fg": word})
    typer.secho(text, nl=False, err=err, **styles)
    typer.echo(end, nl=False, err=err)
    if not end:
        (sys.stderr if err else sys.stdout).flush()


def show_json(value: Any) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """A table on a terminal; lines of tab-separated columns, without a heading, elsewhere."""
    lines = [[one_line(cell, 200) for cell in row] for row in rows]
    if not is_terminal():
        for line in lines:
            typer.echo("\t".join(line))
        return
    if not lines:
        say(empty, style="dim")
        return
    from rich import box  # lazy: only drawn tables need it
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for at, column in enumerate(columns):
        table.add_column(column, no_wrap=at == 0, overflow="ellipsis" if at else "fold")
    for line in lines:
        table.add_row(*(Text(cell) for cell in line))
    Console().print(table)


def show_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line, aligned."""
    pairs = [(name, value) for name, value in fields if value]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        say(f"{name:<{width}}  ", style="dim", end="")
        say(safe(value))


def moment(seconds: float | None) -> str:
    """A time stamp as local date and time."""
    return "" if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
