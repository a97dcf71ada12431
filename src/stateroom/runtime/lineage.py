"""Which branches in memory descend from which: what is erased on a branch is seen there and in its forks, nowhere else.

A line lives as long as somebody holds it or one that descends from it; nothing has to be taken out of here.
"""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakSet, WeakValueDictionary


class Line:
    """One branch's place among the others."""

    __slots__ = ("__weakref__", "above", "below", "branch")

    def __init__(self, branch: str, above: Line | None) -> None:
        self.branch = branch
        self.above = above
        """What it was forked from: held, so that the way from an ancestor to a descendant is never cut."""
        self.below: WeakSet[Line] | None = None
        """What was forked from it; None as long as nothing was."""
        if above is not None:
            if above.below is None:
                above.below = WeakSet()
            above.below.add(self)


class Lineage:
    """The lines of all branches in memory, and of those that they descend from."""

    def __init__(self) -> None:
        self._lines: WeakValueDictionary[tuple[str, str], Line] = WeakValueDictionary()

    def find(self, project: str, branch: str) -> Line | None:
        """The line of a branch, if anybody in memory holds it or descends from it."""
        return self._lines.get((project, branch))

    def line(self, project: str, branch: str, above: Line | None) -> Line:
        """The line of a branch that was forked from `above`."""
        line = self._lines.get((project, branch))
        if line is None:
            line = self._lines[project, branch] = Line(branch, above)
        return line

    def below(self, project: str, branch: str) -> Iterator[str]:
        """The branch and all that descend from it, as far as they are known here."""
        first = self._lines.get((project, branch))
        waiting = [first] if first is not None else []
        while waiting:
            line = waiting.pop()
            yield line.branch
            waiting += line.below or ()
