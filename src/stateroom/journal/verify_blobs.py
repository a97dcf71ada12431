"""The blobs of a data directory: each has the bytes of its name, and those that entries refer to are there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import apsw

from stateroom.blobs.store import CHUNK_BYTES, is_digest
from stateroom.journal.codes import pack_digest
from stateroom.journal.sqlite_index import place_of
from stateroom.journal.verify_entries import Progress
from stateroom.journal.verify_report import Report

INCOMING: Final = "incoming"
"""Folder of blobs that are being written."""


def list_blobs(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every blob under a directory of blobs, by its digest; one that vanishes meanwhile is left out."""
    for inner in _inside(folder):
        if inner.name != INCOMING and inner.is_dir():
            for file in _inside(inner):
                if is_digest(inner.name + file.name):
                    yield inner.name + file.name, file


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes. Raises OSError."""
    whole = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(CHUNK_BYTES):
            whole.update(data)
    return whole.hexdigest()


class BlobCheck:
    """Looks at every blob, and tells a report. Who refers to what it asks the index on the connection."""

    def __init__(
        self,
        connection: apsw.Connection,
        queries: Mapping[str, str],
        report: Report,
        progress: Progress,
        in_use: Callable[[str], bool],
    ) -> None:
        """`in_use` says whether anything refers to a blob now: beside a running server that may be news."""
        self._connection = connection
        self._queries = queries
        self._report = report
        self._progress = progress
        self._in_use = in_use

    def check(self, folder: Path) -> None:
        wanted = {_digest(packed) for (packed,) in self._rows("verify_blob_uses")}
        found: set[str] = set()
        unused = 0
        for number, (digest, path) in enumerate(list_blobs(folder)):
            if number % 64 == 0:
                self._progress("blobs", number, max(len(wanted), number))
            with suppress(FileNotFoundError):
                self._check_bytes(digest, path)
                found.add(digest)
                unused += digest not in wanted
        for digest in sorted(wanted - found):
            if self._in_use(digest):
                self._tell(digest, "it is missing")
        self._report.counts["blobs"] = len(found)
        if unused:
            self._report.notes.append(f"{unused} blobs that nothing refers to: the next start removes them.")

    def _check_bytes(self, digest: str, path: Path) -> None:
        try:
            if file_digest(path) != digest:
                self._tell(digest, "its bytes are not those that were written")
        except FileNotFoundError:
            raise
        except OSError as error:
            self._tell(digest, f"it cannot be read: {error.strerror}")

    def _tell(self, digest: str, problem: str) -> None:
        users = list(self._users(digest))
        if not users:
            advice = "Delete the file: nothing refers to it."
        elif not is_digest(digest):
            advice = f"Delete what refers to it: {'; '.join(users)}."
        else:
            path = f"blobs/{digest[:2]}/{digest[2:]}"
            advice = f"Put {path} back from a backup. Without one, delete what refers to it: {'; '.join(users)}."
        self._report.add("blob", f"blob {digest}", problem, advice)

    def _users(self, digest: str) -> Iterator[str]:
        """A few of those that refer to a blob, in words."""
        for branch, seq, number, run in self._rows("verify_blob_users", pack_digest(digest)):
            where = f"entry {seq} of branch {branch!r}"
            names = self._rows("verify_run_name", place_of(number, run if run != -1 else seq))
            yield f"response {names[0][0]} ({where})" if names else where

    def _rows(self, query: str, *values: Any) -> list[Any]:
        return self._connection.execute(self._queries[query], values).fetchall()


def _digest(packed: bytes | str) -> str:
    return packed if isinstance(packed, str) else packed.hex()


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
