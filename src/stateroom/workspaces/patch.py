"""V4A diffs, the patches that models write for the `apply_patch` tool. Pure: text in, text out.

An update is a sequence of hunks: optional headers (`@@ some line`) that say after which line to look, then lines that
are kept (` `), removed (`-`) and added (`+`). No line numbers: a hunk stands where its kept and removed lines stand in
the file, the first place after the hunk before it; exactly, else without the space at the ends of lines, else without
that at their beginnings. The same text comes out as from `agents.apply_diff` of OpenAI's Agents SDK.

The work is bounded: each search goes through the text once, by means of `str.find`, and all of them together may read
no more than two gigabytes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import dropwhile
from typing import Final, Literal

import msgspec

from stateroom.errors import InvalidRequest

SEARCHED_MAX: Final = 2_000_000_000
"""Characters that the searches of one patch may read."""
LINES_MAX: Final = 500_000
"""Of the file: what is known of a line takes far more room than the line."""

_FORMS: Final[tuple[Callable[[str], str], ...]] = (str, str.rstrip, str.strip)
"""How lines are made alike, in the order in which it is tried."""
_FILES: Final = ("*** Update File:", "*** Delete File:", "*** Add File:")
_END: Final = ("*** End Patch", *_FILES)
_END_OF_FILE: Final = "*** End of File"
_BEGIN: Final = "*** Begin Patch"
_MOVE: Final = "*** Move to:"
_SHOWN_LINES: Final = 12
_SHOWN_CHARACTERS: Final = 160


class PatchFailed(InvalidRequest):
    """The patch cannot be read, or does not fit the file. The message tells the model what did not."""

    code = "patch_failed"


class FilePatch(msgspec.Struct, frozen=True):
    """What a whole patch (`*** Begin Patch`) does to one file."""

    kind: Literal["create_file", "update_file", "delete_file"]
    path: str
    diff: str = ""
    move_to: str = ""
    """Its new path; empty: it stays."""


def patched(text: str, diff: str, *, create: bool = False) -> str:
    """The text after a diff; `create`: the text that a diff of added lines makes. Raises PatchFailed."""
    lines = _diff_lines(_unwrapped(diff, create=create))
    newline = "\r\n" if "\r\n" in (text if "\n" in text and not create else diff) else "\n"
    if create:
        return newline.join(_created(lines))
    if text.count("\n") > LINES_MAX:
        raise PatchFailed(f"The file has more than {LINES_MAX} lines. Change it with a program.")
    source = _Source(text.replace("\r\n", "\n"))
    return newline.join(_apply(source.lines, _edits(source, lines)))


def read_patch(patch: str) -> tuple[FilePatch, ...]:
    """The parts of a patch for several files. Raises PatchFailed."""
    lines = _diff_lines(patch.strip("\r\n"))
    if not lines or lines[0].strip() != _BEGIN:
        raise PatchFailed(f"The patch must begin with a line {_BEGIN!r}.")
    found: list[FilePatch] = []
    lines = [*lines[:1], *dropwhile(lambda line: not line.strip(), lines[1:])]
    first = 1
    while first < len(lines) and not lines[first].startswith(_END[0]):
        kind, path = _file_header(lines[first])
        last = first + 1
        while last < len(lines) and not lines[last].startswith(_END):
            last += 1
        body = lines[first + 1 : last]
        while body and not body[-1]:
            body.pop()
        move = body[0].removeprefix(_MOVE).strip() if body and body[0].startswith(_MOVE) else ""
        found.append(FilePatch(kind, path, "".join(line + "\n" for line in body[bool(move) :]), move))
        first = last
    if not found:
        raise PatchFailed("The patch names no file.")
    return tuple(found)


class _Hunk(msgspec.Struct, frozen=True):
    """Lines that stand together."""

    line: int
    """Where it begins in the diff, from 1."""
    has_header: bool
    headers: list[str]
    several: bool
    """There is more than one header: each of them must be found."""
    context: list[str]
    """Kept and removed lines, as they must stand in the file."""
    edits: list[tuple[int, int, list[str]]]
    """Where in the context, how many lines go there, and which ones come."""
    at_end: bool


class _Source:
    """The text that is patched, and what helps to find lines in it."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self._searched = 0
        self._joined: dict[tuple[int, int], tuple[str, list[int]]] = {}
        self._places: dict[int, dict[str, list[int]]] = {}

    def place(self, form: int, line: str, cursor: int, *, forward: bool) -> int | None:
        """The cursor after a header's line was found: as it was when that stands before it; None: nowhere."""
        places = self._places_of(form).get(_FORMS[form](line), [])
        if places and places[0] < cursor and not forward:
            return cursor
        at = bisect_left(places, cursor)
        return places[at] + 1 if at < len(places) else None

    def find(self, context: Sequence[str], start: int, count: int) -> int | None:
        """Where lines stand among the first `count`, from `start` on; None: nowhere."""
        if not context:
            return start
        if start + len(context) > count:
            return None
        for form, alike in enumerate(_FORMS):
            if (at := self._find_form(form, [alike(line) for line in context], start, count)) is not None:
                return at
        return None

    def is_known(self, line: str) -> bool:
        """Whether it stands anywhere, in any form."""
        return line.strip() in self._places_of(len(_FORMS) - 1)

    def _find_form(self, form: int, context: list[str], start: int, count: int) -> int | None:
        places = self._places_of(form)
        if any(line not in places for line in context):
            return None
        text, starts = self._text_of(form, count)
        # Every line has a line feed on both sides, so that only whole lines are found.
        at = text.find("\n" + "\n".join(context) + "\n", starts[start])
        self._searched += (len(text) if at < 0 else at) - starts[start]
        if self._searched > SEARCHED_MAX:
            raise PatchFailed("Too much of the file has to be searched for this patch. Send it in several parts.")
        return None if at < 0 else bisect_left(starts, at)

    def _text_of(self, form: int, count: int) -> tuple[str, list[int]]:
        """The first lines in one form, a line feed before and after each; and where that before each one is."""
        if (form, count) not in self._joined:
            lines = [_FORMS[form](line) for line in self.lines[:count]]
            starts, at = [], 0
            for line in lines:
                starts.append(at)
                at += len(line) + 1
            self._joined[form, count] = ("\n" + "\n".join(lines) + "\n", starts)
        return self._joined[form, count]

    def _places_of(self, form: int) -> dict[str, list[int]]:
        """In which lines each line stands."""
        if form not in self._places:
            places: dict[str, list[int]] = {}
            for number, line in enumerate(self.lines):
                places.setdefault(_FORMS[form](line), []).append(number)
            self._places[form] = places
        return self._places[form]


def _diff_lines(diff: str) -> list[str]:
    lines = [line.rstrip("\r") for line in diff.split("\n")]
    return lines if lines[-1] else lines[:-1]


def _unwrapped(diff: str, *, create: bool) -> str:
    """The diff of one file, out of a whole patch if it is one."""
    if not diff.lstrip().startswith((_BEGIN, *_FILES)):
        return diff
    whole = diff.lstrip()
    parts = read_patch(whole if whole.startswith(_BEGIN) else f"{_BEGIN}\n{whole}")
    if len(parts) > 1:
        raise PatchFailed("The diff is of several files. Send each of them as an operation of its own.")
    if parts[0].kind != ("create_file" if create else "update_file") or parts[0].move_to:
        raise PatchFailed(f"The operation is {'create_file' if create else 'update_file'}, and its diff another one.")
    return parts[0].diff


def _file_header(line: str) -> tuple[Literal["create_file", "update_file", "delete_file"], str]:
    kinds: tuple[Literal["update_file", "delete_file", "create_file"], ...] = (
        "update_file",
        "delete_file",
        "create_file",
    )
    for start, kind in zip(_FILES, kinds, strict=True):
        if line.startswith(start) and (path := line.removeprefix(start).strip()):
            return kind, path
    raise PatchFailed(f"Expected '*** Add File: ', '*** Update File: ' or '*** Delete File: ', found {_short(line)!r}.")


def _created(lines: Sequence[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if line.startswith(_END):
            return
        if not line.startswith("+"):
            raise PatchFailed(f"Line {number} of the diff of a new file must begin with '+': {_short(line)!r}.")
        yield line[1:]


def _hunks(lines: Sequence[str]) -> Iterator[_Hunk]:
    """The hunks of an update, read one by one. Raises PatchFailed."""
    at = 0
    while at < len(lines) and not lines[at].startswith((*_END, _END_OF_FILE)):
        first = at
        headers = []
        while at < len(lines) and (lines[at] == "@@" or lines[at].startswith("@@ ")):
            headers.append(lines[at][3:])
            at += 1
        body = at
        while at < len(lines) and not _ends_hunk(lines[at]):
            _check_line(lines[at], at + 1)
            at += 1
        at_end = at < len(lines) and lines[at] == _END_OF_FILE
        if at == body and not at_end:
            told = _short(lines[at]) if at < len(lines) else "the end"
            raise PatchFailed(f"Line {at + 1} of the diff should be part of a hunk, and is {told!r}.")
        yield _Hunk(
            line=first + 1,
            has_header=bool(headers),
            headers=[header for header in headers if header.strip()],
            several=len(headers) > 1,
            context=[line[1:] for line in lines[body:at] if not line.startswith("+")],
            edits=list(_edits_of(lines[body:at])),
            at_end=at_end,
        )
        at += at_end


def _ends_hunk(line: str) -> bool:
    return line.startswith(("@@", *_END, _END_OF_FILE)) or line == "***"


def _check_line(line: str, number: int) -> None:
    if line and line[0] not in " +-":
        raise PatchFailed(f"Line {number} of the diff must begin with ' ', '+', '-' or '@@': {_short(line)!r}.")


def _edits_of(lines: Sequence[str]) -> Iterator[tuple[int, int, list[str]]]:
    """Runs of removed and added lines between kept ones."""
    at = removed = 0
    added: list[str] = []
    for line in (*lines, " "):
        if line.startswith("+"):
            added.append(line[1:])
        elif line.startswith("-"):
            removed += 1
        else:
            if removed or added:
                yield at, removed, added
            at, removed, added = at + removed + 1, 0, []


def _edits(source: _Source, lines: Sequence[str]) -> Iterator[tuple[int, int, list[str]]]:
    """Where in the file, how many lines go there, and which ones come. Raises PatchFailed."""
    cursor = 0
    for hunk in _hunks(lines):
        if cursor and not hunk.has_header:
            raise PatchFailed(f"Line {hunk.line} of the diff must be '@@': each hunk but the first begins with it.")
        for number, header in enumerate(hunk.headers):
            cursor = _after_header(source, hunk, header, cursor, forward=number > 0)
        at = _find_hunk(source, hunk, cursor)
        if at is None:
            raise PatchFailed(_told_mismatch(source, hunk, cursor))
        cursor = at + len(hunk.context)
        for offset, removed, added in hunk.edits:
            yield at + offset, removed, added


def _after_header(source: _Source, hunk: _Hunk, header: str, cursor: int, *, forward: bool) -> int:
    for form in (0, len(_FORMS) - 1):
        found = source.place(form, header, cursor, forward=forward)
        if found is not None:
            return found
    if hunk.several:
        raise PatchFailed(
            f"The line after '@@ ' in the hunk at line {hunk.line} of the diff is not in the file "
            f"after line {cursor}: {_short(header)!r}."
        )
    return cursor


def _find_hunk(source: _Source, hunk: _Hunk, cursor: int) -> int | None:
    count = len(source.lines)
    if not hunk.at_end:
        return source.find(hunk.context, cursor, count)
    # What stands after the last line feed is no line.
    count -= not source.lines[-1]
    at = source.find(hunk.context, max(0, count - len(hunk.context)), count)
    return source.find(hunk.context, min(cursor, count), count) if at is None else at


def _apply(lines: Sequence[str], edits: Iterator[tuple[int, int, list[str]]]) -> list[str]:
    result: list[str] = []
    cursor = 0
    for at, removed, added in edits:
        if at > len(lines) or at < cursor:
            raise PatchFailed(
                f"A hunk changes line {at + 1} of the file, which an earlier one has gone past. "
                "Put the hunks in the order of the file."
            )
        result += lines[cursor:at]
        result += added
        cursor = at + removed
    result += lines[cursor:]
    return result


def _told_mismatch(source: _Source, hunk: _Hunk, cursor: int) -> str:
    """What a model needs to do better: the lines that were looked for, and the first that is nowhere."""
    shown = [_short(line) for line in hunk.context[:_SHOWN_LINES]]
    if len(hunk.context) > _SHOWN_LINES:
        shown.append(f"… and {len(hunk.context) - _SHOWN_LINES} more")
    where = "at the end of the file" if hunk.at_end else f"after line {cursor}" if cursor else "in the file"
    unknown = next((line for line in hunk.context if not source.is_known(line)), None)
    if unknown is not None:
        why = f"This line is nowhere in the file: {_short(unknown)!r}."
    elif source.find(hunk.context, 0, len(source.lines)) is not None:
        why = "They stand earlier in the file: put the hunks in the order of the file."
    else:
        why = "Each of them is in the file, but not one after the other as in the diff."
    told = "\n".join(shown)
    return (
        f"The hunk at line {hunk.line} of the diff does not fit: its kept and removed lines were not found {where}. "
        f"{why} Read the file again and send a diff that repeats its lines exactly. Looked for:\n{told}"
    )


def _short(line: str) -> str:
    return line if len(line) <= _SHOWN_CHARACTERS else line[:_SHOWN_CHARACTERS] + "…"
