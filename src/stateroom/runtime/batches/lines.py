"""The lines of a batch's input file, read in pieces, and what was written down of those that are answered. Pure.

A request is known by its number among the lines on which something stands, from 0: blank lines do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.wire.batches import BatchLine, LineError, LineUsage, is_blank, read_line

ERRORS_MAX = 100
"""Mistakes of an input file that are told."""


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one request."""

    number: int
    written: msgspec.Raw = msgspec.Raw(b"null")
    """The line of the output or the error file."""
    blob: str = ""
    """Digest of that line, when it is too large to stand here."""
    failed: bool = False
    usage: LineUsage = LineUsage()


class Finished(msgspec.Struct, frozen=True, omit_defaults=True):
    """A note: requests that were answered since the note before."""

    outcomes: tuple[Outcome, ...] = ()
    begun: tuple[int, ...] = ()
    """Others that were going to be asked: those of which nothing but this would tell that they must not be again."""


class Splitter:
    """Lines out of pieces. One that is longer than `bytes_max` comes as None, and is never whole in memory."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[bytes | None]:
        """The lines that end in this piece. To be read to its end."""
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            self._add(piece[start:end])
            yield self._take()
            start = end + 1
        self._add(piece[start:])

    def rest(self) -> Iterator[bytes | None]:
        """The last line, when nothing ends it."""
        if self._size:
            yield self._take()

    def _add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > self._bytes_max:
            self._parts.clear()
        elif part:
            self._parts.append(part)

    def _take(self) -> bytes | None:
        line = b"".join(self._parts) if self._size <= self._bytes_max else None
        self._parts.clear()
        self._size = 0
        return line


class Examination:
    """Whether an input file is one, line by line."""

    def __init__(self, endpoint: str, *, depth: int, line_bytes: int, lines_max: int) -> None:
        self._endpoint = endpoint
        self._depth = depth
        self._lines_max = lines_max
        self._line_bytes = line_bytes
        self._splitter = Splitter(line_bytes)
        self._seen: set[bytes] = set()
        self._line = 0
        self._models: set[str] = set()
        self.total = 0
        self.errors: list[LineError] = []

    @property
    def model(self) -> str:
        """The model that all requests name; '' when they name several, or none."""
        return next(iter(self._models)) if len(self._models) == 1 else ""

    def feed(self, piece: bytes) -> bool:
        """Look at the next piece; False when there is no need to look any further."""
        return self._look(self._splitter.feed(piece))

    def end(self) -> None:
        """There are no more pieces."""
        if self._look(self._splitter.rest()) and not self.total and not self.errors:
            self.errors.append(LineError("empty_file", "The input file has no requests."))

    def _look(self, lines: Iterator[bytes | None]) -> bool:
        for line in lines:
            self._line += 1
            self._look_at(line)
            if self.total > self._lines_max or self._line > 2 * self._lines_max + ERRORS_MAX:
                message = f"The input file has more than {self._lines_max} requests (`limits.batch_lines`)."
                self.errors = [LineError("too_many_lines", message)]
                return False
            if len(self.errors) >= ERRORS_MAX:
                return False
        return True

    def _look_at(self, line: bytes | None) -> None:
        if line is None:
            message = f"This line is longer than {self._line_bytes} bytes (`limits.body_bytes`)."
            self.errors.append(LineError("line_too_long", message, self._line))
            return
        if is_blank(line):
            return
        self.total += 1
        try:
            read = read_line(line, self._endpoint, self._depth)
        except InvalidRequest as error:
            self.errors.append(LineError(error.code, error.message[:500], self._line, error.param or ""))
            return
        if len(self._models) < 2:
            self._models.add(read.model)
        name = hashlib.blake2b(read.custom_id.encode(), digest_size=16).digest()
        if name in self._seen:
            message = "The custom_id of this request is that of an earlier one. Each must be unique within its batch."
            self.errors.append(LineError("duplicate_custom_id", message, self._line, "custom_id"))
        self._seen.add(name)


class Requests:
    """The requests of a file that was found to be one, as its pieces come in."""

    def __init__(self, endpoint: str, *, depth: int, line_bytes: int) -> None:
        self._endpoint = endpoint
        self._depth = depth
        self._splitter = Splitter(line_bytes)
        self._next = 0

    def feed(self, piece: bytes, done: Progress) -> Iterator[tuple[int, BatchLine]]:
        """Those that end in this piece and are not done yet, with their numbers."""
        return self._left(self._splitter.feed(piece), done)

    def rest(self, done: Progress) -> Iterator[tuple[int, BatchLine]]:
        return self._left(self._splitter.rest(), done)

    def _left(self, lines: Iterator[bytes | None], done: Progress) -> Iterator[tuple[int, BatchLine]]:
        for line in lines:
            if line is not None and is_blank(line):
                continue
            number, self._next = self._next, self._next + 1
            if number not in done:
                yield number, self._read(line)

    def _read(self, line: bytes | None) -> BatchLine:
        """A line was found to be right once; other settings since then may have made it wrong."""
        try:
            if line is None:
                raise InvalidRequest("This line is longer than `limits.body_bytes`.", code="line_too_long")
            return read_line(line, self._endpoint, self._depth)
        except InvalidRequest as error:
            return BatchLine("", b"", "", refusal=error)


class Progress:
    """Which requests are done, and what that came to."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.completed = 0
        self.failed = 0
        self.usage = LineUsage()
        self._done = bytearray(total)

    def __contains__(self, number: int) -> bool:
        return number < self.total and bool(self._done[number])

    @property
    def left(self) -> int:
        return self.total - self.completed - self.failed

    def add(self, outcome: Outcome) -> None:
        """Count an outcome that is written down."""
        if outcome.number in self or outcome.number >= self.total:
            return
        self._done[outcome.number] = 1
        self.completed += not outcome.failed
        self.failed += outcome.failed
        self.usage += outcome.usage
