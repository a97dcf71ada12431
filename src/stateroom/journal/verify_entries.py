"""The truth of a journal against itself: branches and their entries, what the entries say, and the kept streams.

Reads each row once, in order, on a connection whose transaction is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import apsw
import msgspec

from stateroom.errors import StorageError
from stateroom.journal.codes import KIND_CODES, PADDED, read_entry
from stateroom.journal.entries import Erased, Kind, decode
from stateroom.journal.frames import FramePacker
from stateroom.journal.sqlite_index import SEQ_BITS, place_of
from stateroom.journal.verify_report import Report

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what is being read, how much of it has been, and how much there is (0: not known)."""

EVERY: Final = 1_000
"""Rows between two calls of it."""

_SEQ: Final = (1 << SEQ_BITS) - 1
_STARTED: Final = (KIND_CODES[Kind.RUN_STARTED], KIND_CODES[Kind.RUN_STARTED] + PADDED)
_ERASED_BYTES: Final = 7
_END: Final = b"\n\n"
_COMMENT: Final = b":"


class _Line(NamedTuple):
    """A branch as its row has it."""

    id: int
    name: str
    project: str | None
    parent: int | None
    parent_seq: int
    head: int
    parent_project: str | None
    parent_head: int | None

    @property
    def words(self) -> str:
        return f"branch {self.name!r} of project {self.project!r}"


class EntryCheck:
    """Looks at branches, entries and streams, and tells a report."""

    def __init__(
        self, connection: apsw.Connection, queries: Mapping[str, str], report: Report, progress: Progress
    ) -> None:
        self._connection = connection
        self._queries = queries
        self._report = report
        self._progress = progress
        self._unpack = FramePacker().unpack
        self.readable = True
        """Whether every entry could be read: without that no index can be derived."""

    def check_branches(self) -> None:
        """Walk through branches and places side by side: both are in the order of the branches' numbers."""
        total = self._number("count_places")
        places = _Ahead(self._counted("entries", total, "verify_places"))
        branches = 0
        for row in self._rows("verify_branches"):
            line = _Line(*row)
            branches += 1
            self._tell_strays(places.until(place_of(line.id, 0)))
            self._check_parent(line)
            self._check_line(line, places.until(place_of(line.id + 1, 0)))
        self._tell_strays(places.until(None))
        for number, count in self._rows("verify_doubles"):
            self._report.add("entry", f"entry number {number}", f"it stands in {count} places")
        for (number,) in self._rows("verify_strays"):
            self._report.add("entry", f"entry number {number}", "it belongs to no branch")
        self._report.counts.update(branches=branches, entries=total)

    def check_streams(self) -> None:
        """Whether the events of each stream count from 0 without a gap, and whether packed ones can be unpacked."""
        total = self._number("count_streams")
        run, following, streams = -1, 0, 0
        for place, first, last, body, kind, branch in self._counted("streams", total, "verify_frames"):
            if place != run:
                run, following = place, 0
                streams += 1
                self._check_owner(place, branch, kind)
            if not _is_stream(first, last, body):
                self._report.add("stream", _stream(place, branch), _OTHER_COLUMNS)
                continue
            if first != following:
                problem = f"after event {following - 1} comes event {first}"
                self._report.add("stream", _stream(place, branch), problem)
            self._check_events(place, branch, (first, last), body)
            following = last + 1
        for place, first, last, body, kind, branch in self._rows("verify_sealed"):
            if not _is_stream(first, last, body):
                self._report.add("stream", _stream(place, branch), _OTHER_COLUMNS)
                continue
            if last == -1:
                if any(body):
                    self._report.add("stream", _stream(place, branch), _REMAINS)
                continue
            streams += 1
            self._check_owner(place, branch, kind)
            if first != 0:
                self._report.add("stream", _stream(place, branch), f"its first event is {first}")
            try:
                self._check_events(place, branch, (first, last), self._unpack(body))
            except StorageError as error:
                self._report.add("stream", _stream(place, branch), error.message)
        self._report.counts["streams"] = streams

    def _check_parent(self, line: _Line) -> None:
        problem = ""
        if line.project is None:
            problem = "its project is missing"
        elif line.parent is None:
            problem = f"it begins after {line.parent_seq} and has no parent" if line.parent_seq != -1 else ""
        elif line.parent_head is None:
            problem = "the branch that it was forked from is missing"
        elif line.parent >= line.id:
            problem = "it was forked from a branch that is younger than itself"
        elif line.parent_project != line.project:
            problem = f"it was forked from a branch of another project, {line.parent_project!r}"
        elif not -1 <= line.parent_seq <= line.parent_head:
            problem = f"it was forked at {line.parent_seq}, and its parent ends at {line.parent_head}"
        if problem:
            self._report.add("branch", line.words, problem)

    def _check_line(self, line: _Line, places: Iterator[Any]) -> None:
        following = line.parent_seq + 1
        starts: set[int] = set()
        for place, number, *columns in places:
            seq = place & _SEQ
            if seq > following:
                self._report.add("branch", line.words, f"{_span(following, seq - 1)} missing")
            if seq <= line.parent_seq:
                self._report.add("branch", line.words, f"it has an entry {seq}, which is its parent's")
            following = max(following, seq + 1)
            if columns[0] is None:
                self._unreadable(line, seq, f"its content, number {number}, is missing")
            else:
                self._check_entry(line, seq, columns, starts)
        if following <= line.head:
            self._report.add("branch", line.words, f"{_span(following, line.head)} missing, at its end")
        elif following - 1 > line.head:
            self._report.add("branch", line.words, f"it has entries up to {following - 1}, and its head is {line.head}")

    def _check_entry(self, line: _Line, seq: int, columns: list[Any], starts: set[int]) -> None:
        try:
            entry = read_entry(seq, *columns)
            said = decode(entry.kind, entry.body)
        except StorageError as error:
            return self._unreadable(line, seq, error.message)
        except msgspec.MsgspecError as error:
            return self._unreadable(line, seq, f"what it says cannot be read: {error}")
        except (TypeError, AttributeError, ValueError, IndexError):
            return self._unreadable(line, seq, _OTHER_COLUMNS)
        if isinstance(said, Erased) and any(columns[3][_ERASED_BYTES:]):
            self._report.add("entry", f"{line.words}, entry {seq}", _REMAINS)
        if entry.run == seq and (entry.kind == Kind.RUN_STARTED or isinstance(said, Erased)):
            starts.add(seq)
        if entry.run != -1 and entry.run not in starts:
            problem = f"it belongs to a run that starts at {entry.run}, and none does"
            self._report.add("entry", f"{line.words}, entry {seq}", problem)
        return None

    def _unreadable(self, line: _Line, seq: int, problem: str) -> None:
        self.readable = False
        self._report.add("entry", f"{line.words}, entry {seq}", problem)

    def _tell_strays(self, places: Iterator[Any]) -> None:
        for place, number, *_ in places:
            where = f"entry number {number}"
            self._report.add("branch", where, f"it stands on branch number {place >> SEQ_BITS}, which is missing")

    def _check_owner(self, place: int, branch: str, kind: int | None) -> None:
        if kind not in _STARTED:
            self._report.add("stream", _stream(place, branch), "the run that it belongs to is missing or erased")

    def _check_events(self, place: int, branch: str, span: tuple[int, int], body: bytes) -> None:
        first, last = span
        # Comments stand between events and are none: the stream of a chat completion has some.
        comments = body.startswith(_COMMENT) + body.count(_END + _COMMENT)
        count = body.count(_END) - comments if body.endswith(_END) else 0
        if count != last - first + 1:
            problem = f"where events {first} to {last} should be, there are {count} that can be read"
            self._report.add("stream", _stream(place, branch), problem)

    def _counted(self, what: str, total: int, query: str) -> Iterator[Any]:
        for number, row in enumerate(self._rows(query)):
            if number % EVERY == 0:
                self._progress(what, number, total)
            yield row

    def _rows(self, query: str) -> Any:
        return self._connection.cursor().execute(self._queries[query])

    def _number(self, query: str) -> int:
        [(number,)] = self._rows(query)
        return int(number)


class _Ahead:
    """Rows in order of their first column, taken up to a bound at a time."""

    def __init__(self, rows: Iterator[Any]) -> None:
        self._rows = rows
        self._next: Any = next(rows, None)

    def until(self, bound: int | None) -> Iterator[Any]:
        while self._next is not None and (bound is None or self._next[0] < bound):
            row, self._next = self._next, next(self._rows, None)
            yield row


_OTHER_COLUMNS: Final = "its columns hold what they never held"
_REMAINS: Final = "it was erased, and bytes of its content are still there"


def _span(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"


def _is_stream(first: object, last: object, body: object) -> bool:
    return isinstance(first, int) and isinstance(last, int) and isinstance(body, bytes)


def _stream(place: int, branch: str) -> str:
    return f"the stream of run {place & _SEQ} on branch {branch!r}"
