"""What the commands say: made for reading on a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
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
    typer.echo(typer.style(text, **styles) if styles else text, nl=False, err=err)
    typer.echo(end, nl=False, err=err)
    if not end:
        (sys.stderr if err else sys.stdout).flush()


def show_json(value: Any) -> None:
    typer.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def cells(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )


class Flow:
    """Text that is written as it comes: broken between words on a terminal, as it is everywhere else."""

    def __init__(self, *, style: str = "", err: bool = False) -> None:
        self._style, self._err = style, err
        # The last column stays free: a terminal whose cursor has passed it cannot go back to the word's start.
        self._width = shutil.get_terminal_size().columns - 1 if is_terminal(sys.stderr if err else sys.stdout) else 0
        self.start_anew()

    def start_anew(self) -> None:
        """The next word begins a line: something else was written in between."""
        self._column = 0
        self._word = ""
        self._drop_space = bool(self._width)

    def write(self, text: str) -> None:
        text = "".join(map(self._place, text)) if self._width else text
        say(text, style=self._style, end="", err=self._err)

    def _place(self, character: str) -> str:
        """What has to be written so that the character stands where it belongs."""
        dropped, self._drop_space = self._drop_space and character == " ", False
        if dropped:
            return ""
        if character in "\n\t ":
            self._word = ""
            if character == "\n" or self._column >= self._width:
                self._column = 0
                return "\n"
            self._column += 1 if character == " " else 8 - self._column % 8
            return character
        size, word = cells(character), self._word
        self._column += size
        self._word += character
        if self._column <= self._width:
            return character
        moved = cells(word)
        if self._column - size == moved:  # a word as long as the line
            self._word, self._column = character, size
            return f"\n{character}"
        self._column = moved + size
        return (f"\x1b[{moved}D\x1b[K" if moved else "") + f"\n{word}{character}"


class Waiting:
    """A sign on the terminal, from a question to the first words of its answer."""

    def __init__(self) -> None:
        self._shown = False

    def begin(self) -> None:
        if is_terminal(sys.stderr):
            say("…", style="dim", end="", err=True)
            self._shown = True

    def end(self) -> None:
        if self._shown:
            say("\r\x1b[K", end="", err=True)
            self._shown = False


def show_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str, spare: str = "", least: int = 30
) -> None:
    """A table on a terminal; lines of tab-separated columns, without a heading, elsewhere.

    The last column has what room there is; when that is less than `least`, the column `spare` is left out.
    """
    lines = [[one_line(cell, 200) for cell in row] for row in rows]
    if not is_terminal():
        for line in lines:
            typer.echo("\t".join(line))
        return
    if not lines:
        say(empty, style="dim")
        return
    room = shutil.get_terminal_size().columns
    if spare in columns and _left(columns, lines, room) < least:
        gone = columns.index(spare)
        columns, lines = _without(columns, gone), [_without(line, gone) for line in lines]
    last = max(8, _left(columns, lines, room))
    widths = _widths(columns, lines)[:-1]
    say(_line(columns, widths, last), style="bold")
    for line in lines:
        say(_line(line, widths, last))


def _without(row: Sequence[str], gone: int) -> list[str]:
    return [cell for at, cell in enumerate(row) if at != gone]


def _widths(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(cells(cell) for cell in column) for column in zip(columns, *lines, strict=True)]


def _left(columns: Sequence[str], lines: Sequence[Sequence[str]], room: int) -> int:
    """What a line has left for its last column."""
    return room - sum(width + 2 for width in _widths(columns, lines)[:-1])


def _line(row: Sequence[str], widths: Sequence[int], last: int) -> str:
    padded = [cell + " " * (width - cells(cell) + 2) for cell, width in zip(row, widths, strict=False)]
    end = row[-1]
    while cells(end) > last:
        end = end.removesuffix("…")[:-1] + "…"
    return ("".join(padded) + end).rstrip()


def show_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Names and values, one a line, aligned."""
    pairs = [(name, value) for name, value in fields if value]
    width = max((len(name) for name, _ in pairs), default=0)
    for name, value in pairs:
        say(f"{name:<{width}}  ", style="dim", end="")
        say(safe(value))


def moment(seconds: float | None, *, short: bool = False) -> str:
    """A time stamp as local date and time, to the minute or the second."""
    form = "%Y-%m-%d %H:%M" if short else "%Y-%m-%d %H:%M:%S"
    return "" if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime(form)
