"""V4A diffs: the same text as from OpenAI's own implementation, and failures that say what did not fit."""

from __future__ import annotations

import os
import time

import pytest
from agents.apply_diff import apply_diff
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stateroom.workspaces.patch import FilePatch, PatchFailed, patched, read_patch

EXAMPLES = int(os.environ.get("EXAMPLES", "300"))
FILE = "def one():\n    return 1\n\n\ndef two():\n    return 2\n"

file_lines = st.lists(
    st.sampled_from(["a", "b", "c", " a", "a ", "\tb", "", "class X:", "  def f():", "x = 1", "@@", "+a", "é", "\x0c"]),
    max_size=14,
)
headers = st.lists(
    st.sampled_from(["@@", "@@ a", "@@ class X:", "@@ def f():", "@@  a", "@@ nowhere", "@@ "]), max_size=3
)
body_lines = st.lists(
    st.one_of(
        st.builds("".join, st.tuples(st.sampled_from("  -+"), st.sampled_from(["a", "b", "c", " a", "", "x = 1"]))),
        st.sampled_from(["", "a", "***", "*** End of File", "@@x"]),
    ),
    max_size=5,
)
odd_ends = st.sampled_from([[], [], [], ["*** End of File"], ["*** End Patch"], ["*** End Patch", "rest"], ["*** x"]])


@st.composite
def fitting(draw: st.DrawFn, lines: list[str], first: int, last: int) -> list[str]:
    """A hunk that is cut out of a file, with some lines changed: most of what models write."""
    body: list[str] = []
    for line in lines[first:last]:
        match draw(st.integers(0, 9)):
            case 0 | 1 | 2:
                body.append("-" + line)
            case 3 | 4:
                body += ["+" + draw(st.sampled_from(["new", "a", ""])), " " + line]
            case 5:
                body.append(" " + draw(st.sampled_from([line + " ", " " + line, line.strip()])))
            case _:
                body.append(" " + line)
    if draw(st.booleans()):
        body.append("+more")
    return body


@st.composite
def hunks(draw: st.DrawFn, lines: list[str]) -> list[str]:
    """Hunks in the order of the file."""
    diff: list[str] = []
    at = 0
    for number in range(draw(st.integers(1, 3))):
        first = draw(st.integers(at, len(lines)))
        last = at = draw(st.integers(first, min(len(lines), first + 5)))
        if number or draw(st.booleans()):
            diff += draw(
                st.lists(st.sampled_from(["@@", *("@@ " + line for line in lines[:first])]), min_size=1, max_size=2)
            )
        diff += draw(fitting(lines, first, last))
    return diff


@st.composite
def anything(draw: st.DrawFn, lines: list[str]) -> list[str]:
    diff: list[str] = []
    for _ in range(draw(st.integers(0, 3))):
        diff += draw(headers)
        first = draw(st.integers(0, len(lines)))
        diff += draw(st.one_of(fitting(lines, first, first + 3), body_lines))
    return diff


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, str]:
    lines = draw(file_lines)
    diff = draw(st.one_of(hunks(lines), hunks(lines), hunks(lines), anything(lines))) + draw(odd_ends)
    newlines = draw(st.sampled_from(["\n", "\r\n"])), draw(st.sampled_from(["\n", "\r\n"]))
    text = newlines[0].join(lines) + draw(st.sampled_from(["", newlines[0]]))
    return text, newlines[1].join(diff) + draw(st.sampled_from(["", newlines[1]]))


def outcome(function: object, *given: object, **named: object) -> str | None:
    """The text, or None for a refusal."""
    assert callable(function)
    try:
        result: str = function(*given, **named)
    except ValueError:
        return None
    except PatchFailed as failure:
        assert failure.message  # noqa: PT017  # a refusal is one of two good outcomes
        return None
    return result


@settings(max_examples=EXAMPLES, deadline=None)
@given(cases())
@example(("a\nb\n", "@@\n-b\n+c\n*** End of File\n+d"))
@example(("a\nb", "-b\n+c\n*** End of File"))
@example(("", "+a\n"))
@example(("a\n", "\n"))
def test_an_update_gives_what_the_agents_sdk_gives(case: tuple[str, str]) -> None:
    text, diff = case
    assert outcome(patched, text, diff) == outcome(apply_diff, text, diff)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.sampled_from(["+a", "+", "+ b", "a", "", "*** End Patch", "*** End of File"])), st.booleans())
def test_a_new_file_is_what_the_agents_sdk_makes(lines: list[str], windows: bool) -> None:
    diff = ("\r\n" if windows else "\n").join(lines)
    if diff.lstrip().startswith(("*** Begin", "*** Add")):
        return
    assert outcome(patched, "old", diff, create=True) == outcome(apply_diff, "old", diff, mode="create")


def test_the_envelope_that_models_write_around_a_diff_is_taken_off() -> None:
    diff = "@@ def two():\n-    return 2\n+    return 3\n"
    wanted = FILE.replace("2", "3")
    assert patched(FILE, diff) == wanted
    for wrapped in (
        f"*** Begin Patch\n*** Update File: a.py\n{diff}*** End Patch",
        f"\n*** Begin Patch\n\n*** Update File: a.py\n{diff}\n*** End Patch\n",
        f"*** Update File: a.py\n{diff}*** End Patch\n",
        f"*** Begin Patch\r\n*** Update File: a.py\r\n{diff}*** End Patch",
    ):
        assert patched(FILE, wrapped) == wanted
    assert patched("", "*** Begin Patch\n*** Add File: a\n+x\n+y\n*** End Patch", create=True) == "x\ny"


def test_a_patch_of_several_files_is_read_into_its_parts() -> None:
    patch = (
        "*** Begin Patch\n*** Add File: new.txt\n+hello\n*** Update File: a.py\n*** Move to: b.py\n@@\n-x\n+y\n"
        "*** Delete File: old.txt\n*** End Patch\n"
    )
    assert read_patch(patch) == (
        FilePatch("create_file", "new.txt", "+hello\n"),
        FilePatch("update_file", "a.py", "@@\n-x\n+y\n", "b.py"),
        FilePatch("delete_file", "old.txt"),
    )
    with pytest.raises(PatchFailed, match="several files"):
        patched(FILE, patch)


@pytest.mark.parametrize("patch", ["", "hello", "*** Begin Patch\n*** End Patch", "*** Begin Patch\n*** Add File:\n+x"])
def test_a_patch_that_names_no_file_is_refused(patch: str) -> None:
    with pytest.raises(PatchFailed):
        read_patch(patch)


def test_an_envelope_for_another_operation_is_refused() -> None:
    with pytest.raises(PatchFailed, match="another one"):
        patched(FILE, "*** Begin Patch\n*** Delete File: a.py\n*** End Patch")


def test_the_failure_names_the_line_that_is_nowhere() -> None:
    with pytest.raises(PatchFailed) as failure:
        patched(FILE, " def one():\n-    return 7\n+    return 8\n")
    assert "'    return 7'" in failure.value.message
    assert "line 1 of the diff" in failure.value.message
    assert failure.value.code == "patch_failed"


def test_the_failure_says_that_lines_do_not_follow_each_other() -> None:
    with pytest.raises(PatchFailed, match="not one after the other"):
        patched(FILE, " def one():\n-    return 2\n+    return 8\n")


def test_the_failure_says_that_hunks_are_out_of_order() -> None:
    with pytest.raises(PatchFailed, match="earlier in the file"):
        patched(FILE, " def two():\n-    return 2\n@@\n def one():\n-    return 1\n")


def test_a_line_without_its_mark_is_named() -> None:
    with pytest.raises(PatchFailed, match="Line 2 of the diff"):
        patched(FILE, " def one():\n!    return 1\n")


@pytest.mark.parametrize(
    ("text", "diff"),
    [
        ("a\n" * 700_000, " a\n" * 300_000 + "-b\n"),
        ("ab\n" * 500_000, "@@\n" + " ab\n" * 3 + "@@\n-zz\n" * 100_000),
        ("a\n" * 400_000 + "b\n", "@@ a\n" * 400_000 + "-b\n"),
        ("a \nb\n" * 300_000, "@@\n-a\n-b\n-b\n" * 80_000),
        ("a\nb\n" * 300_000, "@@\n a\n-b\n" * 80_000),
        (("a\n" * 50 + "b\n") * 20_000, "@@\n" + (" a\n" * 51 + "-b\n") * 500),
    ],
    ids=[
        "long context",
        "many hunks that fit nowhere",
        "many headers",
        "loose and nowhere",
        "many that fit",
        "repeats",
    ],
)
def test_hostile_patches_end_soon(text: str, diff: str) -> None:
    began = time.process_time()
    try:
        assert patched(text, diff)
    except PatchFailed as failure:
        assert len(failure.message) < 10_000  # noqa: PT017  # either outcome will do, if only it comes soon
    assert time.process_time() - began < 20


def test_a_file_of_more_lines_than_can_be_held_is_refused() -> None:
    with pytest.raises(PatchFailed, match="more than 500000 lines"):
        patched("\n" * 500_001, "@@\n-a\n+b\n")
    assert patched("\n" * 499_998 + "a\n", "@@\n-a\n+b\n").endswith("\nb\n")
