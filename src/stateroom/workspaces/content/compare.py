"""What differs between two trees, by name; and between two texts, by line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

from stateroom.workspaces.content.read import Reader
from stateroom.workspaces.content.tree import DIRECTORY, KINDS, LINK, Entry
from stateroom.workspaces.files.walk import text

_EDITS_MAX: Final = 500
"""Lines that may differ before a text counts as another one altogether; the work grows with the square of it."""
_STEPS_MAX: Final = 2_000_000
"""Lines that are compared at most."""
_CONTEXT: Final = 3


class TreeEntry(msgspec.Struct, frozen=True):
    """One name of a tree, wherever it stands in it."""

    path: str
    """Bytes that are not UTF-8 are lone surrogates; `folder_walk.shown` makes them fit to be sent."""
    kind: Literal["file", "directory", "symlink"]
    size: int
    mode: int
    mtime_ns: int
    """Of a file; 0 of everything else."""
    digest: str
    """Of a file's content or of a directory's tree; empty for a symlink."""
    target: str = ""
    """Where a symlink leads."""


class Change(msgspec.Struct, frozen=True):
    """One path that differs: another content, target, kind or permissions. Times alone are no change."""

    path: str
    before: TreeEntry | None
    """None: it was not there."""
    after: TreeEntry | None
    """None: it is there no more."""


class Difference(msgspec.Struct, frozen=True):
    """What came, went, and is another, in the order of the paths."""

    changes: tuple[Change, ...]
    truncated: bool
    """There is more."""

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    @property
    def added(self) -> list[TreeEntry]:
        return [one.after for one in self.changes if one.before is None and one.after is not None]

    @property
    def removed(self) -> list[TreeEntry]:
        return [one.before for one in self.changes if one.after is None and one.before is not None]

    @property
    def changed(self) -> list[Change]:
        return [one for one in self.changes if one.before is not None and one.after is not None]


def told(path: tuple[bytes, ...], entry: Entry) -> TreeEntry:
    """An entry as it is told to others."""
    return TreeEntry(
        path=text(path),
        kind=KINDS[entry.kind],
        size=entry.size,
        mode=entry.mode,
        mtime_ns=entry.mtime_ns,
        digest="" if entry.kind == LINK else entry.digest.hex(),
        target=text(entry.digest) if entry.kind == LINK else "",
    )


class Comparison:
    """One comparison of two trees. What they share is not read."""

    def __init__(self, reader: Reader, *, limit: int) -> None:
        self._reader = reader
        self._limit = limit
        self._found: list[Change] = []

    def compare(self, before: bytes | None, after: bytes | None) -> Difference:
        """None: nothing at all."""
        more = not self._directories(before, after, ())
        return Difference(tuple(self._found), truncated=more)

    def _directories(self, before: bytes | None, after: bytes | None, above: tuple[bytes, ...]) -> bool:
        """Whether all of it was told."""
        if before == after:
            return True
        old = {entry.name: entry for entry in self._reader.directory(before)} if before else {}
        new = {entry.name: entry for entry in self._reader.directory(after)} if after else {}
        return all(self._entries(old.get(name), new.get(name), (*above, name)) for name in sorted({*old, *new}))

    def _entries(self, old: Entry | None, new: Entry | None, path: tuple[bytes, ...]) -> bool:
        if len(self._found) >= self._limit and not _is_same(old, new):
            return False
        was_directory = old is not None and old.kind == DIRECTORY
        is_directory = new is not None and new.kind == DIRECTORY
        if not (was_directory and is_directory and old and new and old.mode == new.mode) and not _is_same(old, new):
            self._found.append(Change(text(path), told(path, old) if old else None, told(path, new) if new else None))
        if was_directory or is_directory:
            before = old.digest if old is not None and was_directory else None
            after = new.digest if new is not None and is_directory else None
            return self._directories(before, after, path)
        return True


def _is_same(old: Entry | None, new: Entry | None) -> bool:
    if old is None or new is None:
        return old is new
    return (old.kind, old.mode, old.digest) == (new.kind, new.mode, new.digest)


def unified(before: str, after: str, name: str) -> str:
    """The unified diff of two texts; empty: they are the same. Bounded work, whatever the texts are."""
    old, new = _lines(before), _lines(after)
    if old == new:
        return ""
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    middle = _edits(old[head : len(old) - tail], new[head : len(new) - tail])
    kept = [(" ", line) for line in old[len(old) - tail :]]
    script = [(" ", line) for line in old[:head]] + middle + kept
    lines = [f"--- a/{name}\n", f"+++ b/{name}\n"]
    done = old_line = new_line = 0
    for first, last in _hunks(script):
        # Between two hunks nothing differs.
        old_line, new_line = old_line + first - done, new_line + first - done
        removed = sum(mark != "+" for mark, _ in script[first:last])
        added = sum(mark != "-" for mark, _ in script[first:last])
        lines.append(f"@@ -{_range(old_line, removed)} +{_range(new_line, added)} @@\n")
        lines += [_line(mark, line) for mark, line in script[first:last]]
        done, old_line, new_line = last, old_line + removed, new_line + added
    return "".join(lines)


def _lines(content: str) -> list[str]:
    lines = [line + "\n" for line in content.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _edits(old: Sequence[str], new: Sequence[str]) -> list[tuple[str, str]]:
    """A shortest script of kept, removed and added lines (Myers); all of one, then all of the other, if it is long."""
    frontier = {1: 0}
    trace: list[dict[int, int]] = []
    steps = 0
    for edits in range(min(len(old) + len(new), _EDITS_MAX) + 1):
        trace.append(dict(frontier))
        for diagonal in range(-edits, edits + 1, 2):
            down = diagonal == -edits or (
                diagonal != edits and frontier.get(diagonal - 1, -1) < frontier.get(diagonal + 1, -1)
            )
            x = frontier[diagonal + 1] if down else frontier[diagonal - 1] + 1
            start = x
            while x < len(old) and 0 <= x - diagonal < len(new) and old[x] == new[x - diagonal]:
                x += 1
            frontier[diagonal] = x
            steps += x - start
            if x >= len(old) and x - diagonal >= len(new):
                return _back(old, new, trace)
        if steps > _STEPS_MAX:
            break
    return [("-", line) for line in old] + [("+", line) for line in new]


def _back(old: Sequence[str], new: Sequence[str], trace: list[dict[int, int]]) -> list[tuple[str, str]]:
    """The script, read from the end of the search to its beginning."""
    x, y = len(old), len(new)
    script: list[tuple[str, str]] = []
    for edits in range(len(trace) - 1, -1, -1):
        frontier, diagonal = trace[edits], x - y
        down = diagonal == -edits or (
            diagonal != edits and frontier.get(diagonal - 1, -1) < frontier.get(diagonal + 1, -1)
        )
        before = diagonal + 1 if down else diagonal - 1
        from_x = frontier[before] if edits else 0
        from_y = from_x - before if edits else 0
        while x > from_x and y > from_y:
            x, y = x - 1, y - 1
            script.append((" ", old[x]))
        if edits:
            if down:
                y -= 1
                script.append(("+", new[y]))
            else:
                x -= 1
                script.append(("-", old[x]))
    script.reverse()
    return script


def _hunks(script: list[tuple[str, str]]) -> list[tuple[int, int]]:
    """From where to where changes stand together, with the lines around them."""
    found: list[tuple[int, int]] = []
    for number, (mark, _) in enumerate(script):
        if mark != " ":
            first, last = max(0, number - _CONTEXT), min(len(script), number + _CONTEXT + 1)
            if found and first <= found[-1][1]:
                found[-1] = (found[-1][0], last)
            else:
                found.append((first, last))
    return found


def _range(start: int, count: int) -> str:
    return f"{start + 1 if count else start}" + (f",{count}" if count != 1 else "")


def _line(mark: str, line: str) -> str:
    return mark + line if line.endswith("\n") else f"{mark}{line}\n\\ No newline at end of file\n"
