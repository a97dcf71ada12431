"""What is shown on a terminal: text that flows, tables that fit."""

from __future__ import annotations

import io
import itertools
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.cli.terminal import Flow, Waiting, cells, show_table

_TOKEN = re.compile(r"\x1b\[(\d*)([DK])|(.)", re.DOTALL)


class Terminal(io.StringIO):
    """Standard output or error that is a terminal."""

    def isatty(self) -> bool:
        return True

    def screen(self, width: int) -> list[str]:
        """The lines that a reader sees, without the spaces at their ends."""
        lines, column = [""], 0
        for count, command, character in _TOKEN.findall(self.getvalue()):
            if command == "D":
                column = max(0, column - int(count))
            elif command == "K":
                lines[-1] = lines[-1][:column]
            elif character == "\n":
                lines.append("")
                column = 0
            elif character == "\r":
                column = 0
            else:
                if column == width:  # the terminal's own break, in mid-word
                    lines.append("")
                    column = 0
                lines[-1] = lines[-1][:column].ljust(column) + character + lines[-1][column + 1 :]
                column += 1
        return [line.rstrip() for line in lines]


@contextmanager
def on_terminal(width: int) -> Iterator[Terminal]:
    terminal = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)
        patch.setenv("NO_COLOR", "1")
        patch.setenv("COLUMNS", str(width))
        yield terminal


def flow(chunks: list[str], width: int) -> list[str]:
    with on_terminal(width) as terminal:
        flow = Flow()
        for chunk in chunks:
            flow.write(chunk)
        return terminal.screen(width)


def test_text_that_comes_in_pieces_is_broken_between_words() -> None:
    assert flow(["The sea is a va", "st and won", "drous place.\n\nIt ", "has fish."], 12) == [
        "The sea is",
        "a vast and",
        "wondrous",
        "place.",
        "",
        "It has",
        "fish.",
    ]


def test_a_word_that_is_longer_than_a_line_is_broken_where_it_must_be() -> None:
    assert flow(["ab abcdefghijklm", "nopqr end"], 8) == ["ab", "abcdefg", "hijklmn", "opqr", "end"]


words = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=15)


@given(st.lists(words, max_size=30), st.lists(st.integers(1, 9), min_size=1), st.integers(6, 40))
def test_no_word_that_fits_on_a_line_is_ever_torn(said: list[str], sizes: list[int], width: int) -> None:
    text = " ".join(said)
    chunks, start = [], 0
    for size in itertools.cycle(sizes):
        if start >= len(text):
            break
        chunks.append(text[start : start + size])
        start += size
    lines = flow(chunks, width)
    assert all(len(line) < width for line in lines)
    shown = " ".join(lines).split()
    assert "".join(shown) == "".join(said)
    assert [word for word in said if len(word) < width and word not in shown] == []


def test_elsewhere_than_on_a_terminal_text_is_written_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = " a long line that no terminal of twenty columns would hold in one"
    Flow().write(text)
    assert capsys.readouterr().out == text


def test_wide_characters_take_two_columns_and_combining_ones_none() -> None:
    assert cells("a海e\N{COMBINING ACUTE ACCENT}") == 4


def test_the_sign_of_waiting_is_gone_when_the_answer_comes() -> None:
    with on_terminal(80) as terminal:
        waiting = Waiting()
        waiting.begin()
        assert terminal.screen(80) == ["…"]
        waiting.end()
        waiting.end()
        assert terminal.screen(80) == [""]


ROW = ("resp_01m81vw4a1v4w9p07vv5wa4g01", "completed", "2026-11-22 14:51", "smollm2-135m-instruct", "The sea. " * 30)
COLUMNS = ("id", "status", "created", "model", "answer")


@pytest.mark.parametrize(("width", "has_model"), [(80, False), (120, True)])
def test_a_table_fits_its_terminal_with_a_row_a_line(width: int, has_model: bool) -> None:
    with on_terminal(width) as terminal:
        show_table(COLUMNS, [ROW, ROW], empty="", spare="model")
    lines = [line for line in terminal.getvalue().splitlines() if line.strip()]
    assert len(lines) == 3, "a heading and two rows"
    assert all(len(line) <= width for line in lines)
    assert all(cell in lines[1] for cell in ROW[:3]), "what can be copied or compared is not cut"
    assert "The sea." in lines[1]
    assert ("smollm2" in lines[1]) == has_model
