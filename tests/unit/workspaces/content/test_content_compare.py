"""Unified diffs: they lead from one text to the other, and hostile texts end soon."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stateroom.workspaces.content.compare import unified
from stateroom.workspaces.content.tree import FILE, Entry, check_order, decode, encode

texts = st.lists(
    st.sampled_from(["a\n", "b\n", "c\n", "\n", "-x\n", "+y\n", "@@\n", "é\r\n", "\x0c\n"]), max_size=12
).flatmap(lambda lines: st.sampled_from(["".join(lines), "".join(lines) + "end"]))


def patch(text: str, diff: str) -> str:
    """What `patch` would make of a text: every number and every line of the diff must be true."""
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    result: list[str] = []
    at = 0
    parts = re.split(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@\n", diff, flags=re.MULTILINE)
    for first, removed, new, added, body in zip(*(iter(parts[1:]),) * 5, strict=True):
        counts = [1 if one is None else int(one) for one in (removed, added)]
        start = int(first) - (counts[0] > 0)
        assert start >= at
        result += lines[at:start]
        at = start
        assert len(result) == int(new) - (counts[1] > 0)
        for mark, line in re.findall(r"([ +-])([^\n]*\n(?:\\ [^\n]*\n)?)", body):
            line = re.sub(r"\n\\ [^\n]*\n\Z", "", line)
            if mark != "+":
                assert lines[at] == line
                at += 1
            if mark != "-":
                result.append(line)
            counts[0] -= mark != "+"
            counts[1] -= mark != "-"
        assert counts == [0, 0]
    return "".join(result + lines[at:])


@settings(max_examples=400, deadline=None)
@given(texts, texts)
def test_a_diff_leads_from_one_text_to_the_other(before: str, after: str) -> None:
    diff = unified(before, after, "name")
    assert (diff == "") == (before == after)
    if diff:
        assert diff.startswith("--- a/name\n+++ b/name\n@@ ")
    assert patch(before, diff) == after


def test_far_changes_stand_in_hunks_of_their_own() -> None:
    lines = [f"{number}\n" for number in range(50)]
    changed = [*lines]
    changed[5], changed[40] = "five\n", "forty\n"
    diff = unified("".join(lines), "".join(changed), "n")
    assert re.findall("^@@.*", diff, re.MULTILINE) == ["@@ -3,7 +3,7 @@", "@@ -38,7 +38,7 @@"]
    assert diff.count("\n") == 2 + 2 * 9


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a\nb\n" * 60_000, "b\na\n" * 60_000),
        ("a\n" * 120_000, "b\n" * 120_000),
        ("a\n" * 120_000, "a\nb\n" * 60_000),
        ("".join(f"{n}\n" for n in range(40_000)), "".join(f"{n}\n" for n in reversed(range(40_000)))),
    ],
)
def test_hostile_texts_are_compared_soon(before: str, after: str) -> None:
    began = time.process_time()
    diff = unified(before, after, "n")
    assert patch(before, diff) == after
    assert time.process_time() - began < 10


names = st.binary(min_size=1, max_size=6).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b".."))


@settings(max_examples=60, deadline=None)
@given(st.lists(names, unique=True, max_size=900), st.integers(0, 2**62))
def test_a_directory_of_any_names_is_read_as_it_was_written(found: list[bytes], size: int) -> None:
    entries = [Entry(name, FILE, 0o644, -5, size % 1000, b"\7" * 32) for name in sorted(found)]
    nodes = {node.summary.digest: node for node in encode(entries, {})}
    top = decode(list(nodes.values())[-1].body) if entries else decode(encode([], {})[0].body)
    read = top.entries or [entry for page in top.pages for entry in decode(nodes[page].body).entries]
    assert read == entries
    check_order(read)
    assert encode(entries, {})[-1].summary.files == len(entries)
