"""Writing a conversation, or a chain of responses, into one file: its entries, what they refer to, and no secret.

Only what has ended and is committed goes in. The history is read twice, a little at a time: once for its size and hash,
which stand in front of it, and once to be sent. Images and files stream from where they are kept.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any, Final
from weakref import finalize

import msgspec

from stateroom.access.sealing import Sealer
from stateroom.agent.context import blob_digests
from stateroom.blobs.store import BlobMissing, Blobs
from stateroom.errors import InvalidRequest, NotFound, StorageError, TooLarge, TooMany
from stateroom.journal.entries import (
    Entry,
    Fact,
    Item,
    ItemFinished,
    ItemsAdded,
    RunEnded,
    RunStarted,
    RunSteered,
    decode,
    encode,
)
from stateroom.journal.store import Index, Journal
from stateroom.runtime.files.files import Files
from stateroom.runtime.ranges import part_of
from stateroom.runtime.reading import RESPONSES, conversation_not_found, response_not_found
from stateroom.wire import tar
from stateroom.wire.export import (
    BLOBS,
    HISTORY,
    KINDS,
    MANIFEST,
    ExportedBlob,
    ExportedConversation,
    ExportedFile,
    Manifest,
    encode_line,
    encode_manifest,
    with_opened,
)

AT_ONCE_MAX: Final = 8
"""Files that are made or on their way at the same time: each holds its history in memory."""
AT_ONCE_PROJECT: Final = 4
"""Those of one project."""
_WINDOW: Final = 500
"""Entries that are read at a time."""
_BREATH_BYTES: Final = 256 * 1024
"""History that is written before others have their turn."""


class Export:
    """A file on its way out."""

    def __init__(
        self,
        blobs: Blobs,
        name: str,
        manifest: Manifest,
        lines: Callable[[], AsyncGenerator[bytes, None]],
        at: int,
    ) -> None:
        """`lines` gives the history anew."""
        self._blobs = blobs
        self.name = name
        self.manifest = manifest
        self._lines = lines
        self._head = encode_manifest(manifest)
        self._at = at // 1000
        sizes = [len(self._head), manifest.history.bytes, *[blob.bytes for blob in manifest.blobs]]
        self.size = sum(map(tar.length, sizes)) + len(tar.END)

    @property
    def etag(self) -> str:
        """The same for the same bytes."""
        return f'"{hashlib.sha256(self._head).hexdigest()}"'

    def read(self, first: int = 0, last: int | None = None) -> AsyncGenerator[bytes, None]:
        """Its bytes from `first` to `last` (inclusive; None: the end). Raises StorageError when one is gone."""
        return part_of(self._pieces(), first, last, self.size)

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        manifest = self.manifest
        yield self._member(MANIFEST, len(self._head)) + self._head + tar.padding(len(self._head))
        yield self._member(HISTORY, manifest.history.bytes)
        sha256 = hashlib.sha256()
        async with aclosing(self._lines()) as lines:
            async for line in lines:
                sha256.update(line)
                yield line
        if sha256.hexdigest() != manifest.history.sha256:
            raise StorageError("Something was erased while it was being exported: what was sent is of no use.")
        yield tar.padding(manifest.history.bytes)
        for blob in manifest.blobs:
            yield self._member(BLOBS + blob.sha256, blob.bytes)
            async with aclosing(self._blobs.chunks(blob.sha256)) as chunks:
                async for chunk in chunks:
                    yield chunk
            yield tar.padding(blob.bytes)
        yield tar.END

    def _member(self, name: str, size: int) -> bytes:
        return tar.header(name, size, at=self._at)


class _Places:
    """Who has an export in memory. A place is given back with the export itself, whatever became of its reader."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    def take(self, project: str) -> None:
        """Raises TooMany."""
        if self._taken[project] >= AT_ONCE_PROJECT or self._taken.total() >= AT_ONCE_MAX:
            message = "Too many files are being exported. Try again when one of them is out."
            raise TooMany(message, code="too_many_exports", retry_after=5.0)
        self._taken[project] += 1

    def give(self, project: str) -> None:
        self._taken[project] -= 1
        if not self._taken[project]:
            del self._taken[project]


class Exporter:
    """Makes exports."""

    def __init__(
        self, journal: Journal, index: Index, blobs: Blobs, files: Files, sealer: Sealer, *, history_bytes: int
    ) -> None:
        self._journal = journal
        self._index = index
        self._blobs = blobs
        self._files = files
        self._sealer = sealer
        self._history_bytes = history_bytes
        self._places = _Places()

    async def conversation(self, project: str, conversation_id: str) -> Export:
        """A conversation as it stands. Raises NotFound, TooLarge, StorageError."""
        row = await self._index.conversation(project, conversation_id)
        if row is None:
            raise conversation_not_found(conversation_id)
        shown = ExportedConversation(row.id, row.created_at, row.metadata)
        return await self._export(project, row.branch, None, conversation=shown)

    async def response(self, project: str, run_id: str) -> Export:
        """A response and all that it continues. Raises NotFound, InvalidRequest, TooLarge, StorageError."""
        row = await self._index.run(project, run_id)
        if row is None or row.surface != RESPONSES:
            raise response_not_found(run_id)
        if row.end < 0:
            message = f"Response '{run_id}' is still in progress; export it when it has ended."
            raise InvalidRequest(message, code="response_in_progress", param="response_id")
        return await self._export(project, row.branch, row.end, response=run_id)

    async def _export(
        self,
        project: str,
        branch: str,
        upto: int | None,
        *,
        conversation: ExportedConversation | None = None,
        response: str = "",
    ) -> Export:
        self._places.take(project)
        try:
            export = await self._made(project, branch, upto, conversation, response)
        except BaseException:
            self._places.give(project)
            raise
        finalize(export, self._places.give, project)
        return export

    async def _made(
        self, project: str, branch: str, upto: int | None, conversation: ExportedConversation | None, response: str
    ) -> Export:
        inside = conversation.id if conversation else ""
        history = _History(project, self._sealer, inside, self._history_bytes)
        async with aclosing(self._lines(history, branch, upto)) as lines:
            async for _ in lines:
                pass
        files = [file async for file in self._named(project, history.file_ids)]
        digests = dict.fromkeys([*history.digests, *[file.sha256 for file in files]])
        manifest = Manifest(
            object="conversation" if conversation else "responses",
            history=ExportedBlob(history.sha256.hexdigest(), history.size),
            items=history.items,
            responses=history.responses,
            conversation=conversation,
            last_response=response,
            blobs=[await self._blob(digest) for digest in digests],
            files=files,
        )
        name = conversation.id if conversation else response

        def again() -> AsyncGenerator[bytes, None]:
            # Never more than there was: what has come since is beyond what the manifest says.
            anew = _History(project, self._sealer, inside, history.size)
            return self._lines(anew, branch, history.last_seq)

        return Export(self._blobs, name, manifest, again, history.began_at)

    async def _lines(self, history: _History, branch: str, upto: int | None) -> AsyncGenerator[bytes, None]:
        """The lines that a branch gives, as `history` makes them of its entries."""
        after = -1
        while True:
            last = after + _WINDOW if upto is None else min(upto, after + _WINDOW)
            entries = await self._journal.read(history.project, branch, after=after, upto=last)
            for entry in entries:
                for line in history.add(entry):
                    yield line
            if not entries or last == upto:
                return
            after = last
            await asyncio.sleep(0)

    async def _named(self, project: str, file_ids: Iterable[str]) -> AsyncGenerator[ExportedFile, None]:
        for file_id in file_ids:
            try:
                file = await self._files.get(project, file_id)
            except NotFound:
                continue
            yield ExportedFile(file.id, file.filename, file.purpose, file.bytes, file.digest, file.expires_at)

    async def _blob(self, digest: str) -> ExportedBlob:
        size = await self._blobs.size(digest)
        if size is None:
            raise BlobMissing(f"The blob {digest} that an entry refers to is missing.")
        return ExportedBlob(digest, size)


class _History:
    """The lines of an export, as they are made of entries, and what they refer to."""

    def __init__(self, project: str, sealer: Sealer, conversation: str, bytes_max: int) -> None:
        self.project = project
        self._sealer = sealer
        self._conversation = conversation
        self._bytes_max = bytes_max
        self._read = 0
        self._run: list[tuple[bytes, list[Item], list[str]]] | None = None
        """Lines of a run that has not ended yet, their items, and the blobs that they name besides."""
        self.size = 0
        self.last_seq = -1
        """Of the entries that are in it."""
        self.sha256 = hashlib.sha256()
        self.items = 0
        self.responses = 0
        self.began_at = 0
        self.digests: dict[str, None] = {}
        self.file_ids: dict[str, None] = {}

    def add(self, entry: Entry) -> list[bytes]:
        """Take in the next entry of the branch; the lines that can be told now. Raises TooLarge."""
        if entry.kind not in KINDS:
            return []
        record = decode(entry.kind, entry.body)
        if isinstance(record, RunStarted):
            self._run = []
        elif self._run is None and not isinstance(record, ItemsAdded):
            return []  # of a run whose beginning was erased
        record, items, digests = self._portable(record)
        line = encode_line(entry.kind, entry.at, encode(record))
        self._read += len(line)
        if self._read > self._bytes_max:
            raise TooLarge(
                f"What was said is more than {self._bytes_max} bytes (`limits.export_history_bytes`).",
                code="export_too_large",
            )
        self.began_at = self.began_at or entry.at
        if self._run is None:
            self.last_seq = entry.seq
            return [self._keep(line, items, digests)]
        self._run.append((line, items, digests))
        if not isinstance(record, RunEnded):
            return []
        ended, self._run = self._run, None
        self.last_seq = entry.seq
        self.responses += 1
        return [self._keep(*held) for held in ended]

    def _keep(self, line: bytes, items: list[Item], digests: list[str]) -> bytes:
        self.size += len(line)
        self.sha256.update(line)
        self.items += len(items)
        self.digests.update(dict.fromkeys([*digests, *blob_digests(items)]))
        self.file_ids.update(dict.fromkeys(file_ids(items)))
        return line

    def _portable(self, record: Fact) -> tuple[Fact, list[Item], list[str]]:
        """The record as it is exported, its items, and the blobs that it names besides."""
        match record:
            case RunStarted():
                settings = record.settings
                digests = [digest for digest in (settings.tools_blob, settings.instructions_blob) if digest]
                inside = record.conversation if record.conversation == self._conversation else ""
                items = self._items(record.input)
                return msgspec.structs.replace(record, input=items, key="", conversation=inside), items, digests
            case RunSteered():
                items = self._items(record.input)
                return msgspec.structs.replace(record, input=items), items, []
            case ItemsAdded():
                items = self._items(record.items)
                return msgspec.structs.replace(record, items=items, copied=-1), items, []
            case ItemFinished():
                items = self._items([record.item])
                return msgspec.structs.replace(record, item=items[0]), items, []
            case _:
                return record, [], []

    def _items(self, items: list[Item]) -> list[Item]:
        return [self._opened(item) for item in items]

    def _opened(self, item: Item) -> Item:
        """What this installation has sealed is of no use to another one."""
        sealed: Any = item.get("encrypted_content")
        text = self._sealer.open(self.project, sealed) if isinstance(sealed, str) and sealed else None
        return item if text is None else with_opened(item, text)


def file_ids(items: Iterable[Item]) -> Iterator[str]:
    """The files that parts of these items name."""
    for item in items:
        for field in ("content", "output"):
            parts = item.get(field)
            for part in parts if isinstance(parts, list) else ():
                if isinstance(part, dict) and isinstance(part.get("file_id"), str):
                    yield part["file_id"]
