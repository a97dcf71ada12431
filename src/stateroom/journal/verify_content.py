"""The content store of a data directory or a backup against itself, and against the commits that the journal names.

It is only read: a server may be at work on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import apsw
import msgspec

from stateroom.errors import StorageError
from stateroom.journal.codes import read_entry
from stateroom.journal.entries import RecordNoted, RecordPut, decode
from stateroom.journal.layout import JOURNAL
from stateroom.journal.sqlite_connections import connect_reader
from stateroom.journal.verify_entries import Progress
from stateroom.journal.verify_report import Report
from stateroom.workspaces.content.errors import TRANSLATED
from stateroom.workspaces.content.file import ContentFile
from stateroom.workspaces.content.read import Reader
from stateroom.workspaces.content.verify import verify_file
from stateroom.workspaces.layout import CONTENT

CONTAINERS: Final = "verify_containers"
"""The query for the states of containers and the notes about them."""


class Named(NamedTuple):
    """What the journal expects of the content store."""

    container: str
    digest: str
    what: str
    """tree or variables."""


class _Head(msgspec.Struct):
    tree: str = ""
    interpreter: str = ""


class _State(msgspec.Struct):
    """What is read here of a container's state."""

    head: _Head | None = None


class ReadOnlyContent(ContentFile):
    """A content store that nothing is written to, not even its log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with TRANSLATED:
            self._connection = connect_reader(path)

    @contextmanager
    def read(self) -> Iterator[apsw.Cursor]:
        with TRANSLATED:
            yield self._connection.cursor()

    def close(self) -> None:
        self._connection.close()


def named_contents(connection: apsw.Connection, queries: Mapping[str, str]) -> set[Named]:
    """What the commits of all containers are made of. What cannot be read names nothing."""
    found: set[Named] = set()
    rows: Any = connection.cursor().execute(queries[CONTAINERS])
    for columns in rows:
        try:
            entry = read_entry(0, *columns)
            said = decode(entry.kind, entry.body)
            head = _head_of(said)
            if head is not None and isinstance(said, RecordPut | RecordNoted):
                found.add(Named(said.id, head.tree, "tree"))
                if head.interpreter:
                    found.add(Named(said.id, head.interpreter, "variables"))
        except (StorageError, msgspec.MsgspecError, TypeError, ValueError, AttributeError, IndexError):
            continue  # the check of the entries tells of it
    return found


def missing_contents(data: Path, named: set[Named]) -> list[Named]:
    """Those of them that the content store of a directory has not. Raises StorageError."""
    if not (data / CONTENT).is_file():
        return sorted(named)
    with closing(ReadOnlyContent(data / CONTENT)) as content:
        reader = Reader(content)
        return [each for each in sorted(named) if not _is_there(reader, each)]


def check_content(
    connection: apsw.Connection, data: Path, queries: Mapping[str, str], report: Report, progress: Progress
) -> None:
    """Read all of the content store, and look for what the journal names."""
    path, named = data / CONTENT, named_contents(connection, queries)
    if not path.is_file():
        if named:
            report.add("content", CONTENT, "it is missing: the files of all containers are")
        return
    report.counts["commits"] = sum(each.what == "tree" for each in named)
    with closing(ReadOnlyContent(path)) as content:
        for problem in verify_file(content, progress):
            report.add("content", CONTENT, problem)
    missing = missing_contents(data, named)
    if missing:
        # Beside a running server a container may have been deleted since the journal was looked at.
        with closing(connect_reader(data / JOURNAL)) as now:
            still = named_contents(now, queries)
        for each in missing:
            if each in still:
                report.add("content", each.container, f"its {each.what} {each.digest} is not in {CONTENT}")


def _head_of(said: object) -> _Head | None:
    match said:
        case RecordPut():
            return msgspec.json.decode(said.state, type=_State).head
        case RecordNoted():
            note = msgspec.json.decode(said.note, type=_Head)
            return note if note.tree else None
        case _:
            return None


def _is_there(reader: Reader, each: Named) -> bool:
    digest = bytes.fromhex(each.digest)
    return (reader.summary(digest) if each.what == "tree" else reader.size(digest)) is not None
