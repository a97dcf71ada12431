"""Reading a file that `runtime.export` wrote, maybe elsewhere, maybe by a stranger, into a project.

The file is taken in as it comes. Its history is checked whole before the first blob is kept, and written in one commit
when every blob has come with the bytes of its name: a file is imported, or nothing of it is. Blobs that came before a
refusal or a crash are taken away again. Ids stay as they are; with `new_ids` everything gets an id of its own here.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from stateroom import ids
from stateroom.access.sealing import Sealer
from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.store import Blobs, BlobWriter
from stateroom.clock import Clock
from stateroom.errors import RequestError, StorageError, TooLarge, TooMany
from stateroom.journal.entries import (
    ConversationCreated,
    Fact,
    Item,
    ItemFinished,
    ItemsAdded,
    RunStarted,
    RunSteered,
    encode,
    kind_of,
)
from stateroom.journal.store import Append, Branch, Draft, Index, Journal
from stateroom.runtime.files.files import COLLECTION as FILES
from stateroom.runtime.files.files import FileState
from stateroom.runtime.moving.checks import HistoryCheck
from stateroom.runtime.moving.names import renamed, renamed_id
from stateroom.runtime.records import Records
from stateroom.settings import Limits
from stateroom.wire import tar
from stateroom.wire.decoding import Bounds
from stateroom.wire.export import (
    BLOBS,
    HISTORY,
    MANIFEST,
    MANIFEST_BYTES,
    ExportedFile,
    Manifest,
    damaged,
    decode_lines,
    decode_manifest,
    invalid,
    opened_of,
)
from stateroom.wire.files import PURPOSES, clean_filename

AT_ONCE_MAX: Final = 4
"""Files that are imported at the same time: each holds its history in memory."""
_DEPTH: Final = 16
"""How much deeper a line nests than the request that it came from."""
_BREATH_BYTES: Final = 256 * 1024
"""History that is checked before others have their turn."""


class IdExists(RequestError):
    """Something of the project has this id already."""

    status = 409
    code = "id_exists"


class Imported(msgspec.Struct, frozen=True):
    """What came of an import."""

    conversation: str
    """Its id; '' when a chain was imported."""
    response: str
    """The last response; '' when there is none."""
    items: int
    responses: int
    files: int


class Importer:
    """Imports files."""

    def __init__(
        self,
        journal: Journal,
        index: Index,
        *,
        blobs: Blobs,
        held: HeldBlobs,
        records: Records,
        sealer: Sealer,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self.journal = journal
        self.index = index
        self.blobs = blobs
        self.held = held
        self.files = records.collection(FILES, FileState)
        self.sealer = sealer
        self.clock = clock
        self.limits = limits
        self.bounds = Bounds(
            items=limits.items,
            depth=limits.depth,
            tools=limits.tools,
            content_parts=limits.content_parts,
            item_bytes=limits.item_bytes,
        )
        self.going_on = 0
        self.writing = asyncio.Lock()
        """Held from the look for ids that exist to the commit that makes them."""

    def incoming(self, project: str) -> Incoming:
        """For the bytes of a file, of which it shows at the end whether they are imported."""
        return Incoming(self, project)


class Incoming:
    """A file on its way in. Leaving the block without `keep` leaves nothing of it behind."""

    def __init__(self, importer: Importer, project: str) -> None:
        self._of = importer
        self._project = project
        self._tar = tar.TarReader()
        self._hold = importer.held.hold()
        self._hash = hashlib.sha256()
        self._size = 0
        self._member: tar.Member | None = None
        self._parts: list[bytes] = []
        self._writer: BlobWriter | None = None
        self._manifest: Manifest | None = None
        self._check: HistoryCheck | None = None
        self._sizes: dict[str, int] = {}
        """Blobs that are still to come."""
        self._kept: list[str] = []
        self._done = False

    @property
    def digest(self) -> str:
        """Of the bytes so far."""
        return self._hash.hexdigest()

    async def __aenter__(self) -> Self:
        if self._of.going_on >= AT_ONCE_MAX:
            message = "Too many files are being imported. Try again when one of them is in."
            raise TooMany(message, code="too_many_imports", retry_after=5.0)
        self._of.going_on += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._of.going_on -= 1
        try:
            if self._writer is not None:
                await self._writer.abort()
        finally:
            self._hold.__exit__(kind, error, trace)
        for digest in () if self._done else self._kept:
            if not await self._of.index.blob_in_use(digest) and not self._of.held.is_held(digest):
                await self._of.blobs.delete(digest)

    async def feed(self, data: bytes) -> None:
        """Take in what comes next. Raises InvalidRequest, TooLarge, StorageFull."""
        self._size += len(data)
        if self._size > self._of.limits.import_bytes:
            raise too_large(self._of.limits.import_bytes)
        self._hash.update(data)
        try:
            pieces = self._tar.feed(data)
        except tar.BadTar as error:
            raise invalid(str(error)) from None
        for piece in pieces:
            if isinstance(piece, tar.Member):
                self._begin(piece)
            elif not isinstance(piece, bytes):
                await self._end()
            elif self._writer is not None:
                await self._writer.write(piece)
            else:
                self._parts.append(piece)

    async def whole(self) -> None:
        """Whether all of it has come, as it was written. Raises InvalidRequest."""
        if self._check is None or self._sizes or not self._tar.is_whole:
            raise damaged("its end is missing")
        for digest in self._check.images:
            await self._bounded(digest, self._of.limits.image_bytes, "an image", "limits.image_bytes")
        for digest in self._check.texts:
            await self._text(digest)
        for digest in self._check.tool_lists:
            data = await self._bounded(digest, self._of.limits.body_bytes, "a list of tools", "limits.body_bytes")
            try:
                tools = msgspec.json.decode(data, type=list[dict[str, Any]])
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                tools = [{}]
            if len(tools) > self._of.bounds.tools or not all(isinstance(tool.get("type"), str) for tool in tools):
                raise invalid("a list of tools cannot be read")

    async def keep(self, *, new_ids: bool, also: Callable[[str], Sequence[Fact]] = lambda made: ()) -> Imported:
        """Write it, after `whole`; durable when this returns. Raises IdExists, StorageError.

        What `also` makes of the ids of the conversation and the last response is committed with it.
        """
        check, manifest = self._check, self._manifest
        assert check is not None, "`whole` comes first"
        assert manifest is not None, "`whole` comes first"
        names = {key: ids.new_key() for key in check.keys} if new_ids else {}
        conversation = manifest.conversation.id if manifest.conversation else ""
        if conversation and new_ids:
            names[ids.key_of(conversation)] = ids.new_key()
        last = renamed_id(list(check.runs)[-1], names) if check.runs else ""
        async with self._of.writing:
            files = await self._new_files(manifest, names, new_ids=new_ids)
            records = [(renamed(record, names), at, run) for record, at, run in check.entries]
            conversation = renamed_id(conversation, names)
            if not new_ids:
                await self._check_free([conversation], list(check.runs))
            made: list[str] = []
            try:
                for file_id, file in files:
                    state = FileState(clean_filename(file.filename, "filename"), file.purpose, file.bytes, file.sha256)
                    await self._of.files.create(
                        self._project, file_id, state, expires_at=file.expires_at, blobs=[file.sha256]
                    )
                    made.append(file_id)
                await self._append(manifest, conversation, records, also(f"{conversation} {last}"))
            except BaseException:
                for file_id in made:
                    with suppress(StorageError):  # it was made a moment ago; the first error is the one to tell
                        await self._of.files.drop(self._project, file_id)
                raise
        self._done = True
        return Imported(conversation, last, check.items, len(check.runs), len(manifest.files))

    def count(self, conversation: str, response: str) -> Imported:
        """What an import of the same file came to before, under these ids."""
        assert self._check is not None, "`whole` comes first"
        assert self._manifest is not None, "`whole` comes first"
        return Imported(conversation, response, self._check.items, len(self._check.runs), len(self._manifest.files))

    # What comes, member by member.

    def _begin(self, member: tar.Member) -> None:
        self._member, self._parts = member, []
        if self._manifest is None:
            _expect(member.name == MANIFEST, f"its first member must be `{MANIFEST}`, not {member.name!r}")
            _expect(member.size <= MANIFEST_BYTES, f"its manifest has more than {MANIFEST_BYTES} bytes")
        elif self._check is None:
            _expect(member.name == HISTORY, f"its second member must be `{HISTORY}`, not {member.name!r}")
            if member.size != self._manifest.history.bytes:
                raise damaged("its history has another size than its manifest says")
        else:
            digest = member.name.removeprefix(BLOBS)
            _expect(member.name == BLOBS + digest and digest in self._sizes, f"it has a member {member.name!r}")
            if member.size != self._sizes[digest]:
                raise damaged(f"the blob {digest} has another size than its manifest says")
            self._writer = self._hold.writer()

    async def _end(self) -> None:
        assert self._member is not None, "what ends has begun"
        if self._writer is not None:
            await self._end_blob(self._writer, self._member.name.removeprefix(BLOBS))
        elif self._manifest is None:
            self._manifest = self._checked_manifest(decode_manifest(b"".join(self._parts)))
        else:
            self._check = await self._checked_history(self._manifest, b"".join(self._parts))
        self._parts = []

    def _checked_manifest(self, manifest: Manifest) -> Manifest:
        limits = self._of.limits
        if manifest.history.bytes > limits.export_history_bytes:
            message = f"What was said is more than {limits.export_history_bytes} bytes (`limits.export_history_bytes`)."
            raise TooLarge(message, code="export_too_large")
        self._sizes = {blob.sha256: blob.bytes for blob in manifest.blobs}
        _expect(len(self._sizes) == len(manifest.blobs), "its manifest names a blob twice")
        if sum(self._sizes.values()) > limits.import_bytes:
            raise too_large(limits.import_bytes)
        for file in manifest.files:
            _expect(self._sizes.get(file.sha256) == file.bytes, f"the file {file.id} is not among its blobs")
            _expect(file.purpose in (*PURPOSES, "batch_output"), f"the file {file.id} has a purpose that is none")
        return manifest

    async def _checked_history(self, manifest: Manifest, data: bytes) -> HistoryCheck:
        if hashlib.sha256(data).hexdigest() != manifest.history.sha256:
            raise damaged("its history is not what it was")
        bounds = self._of.bounds
        check = HistoryCheck(
            manifest, bounds, context_items=self._of.limits.context_items, now=int(self._of.clock.now() * 1000)
        )
        read = 0
        for line in decode_lines(data, depth=bounds.depth + _DEPTH, line_bytes=2 * bounds.item_bytes):
            check.add(line)
            read += len(line.body)
            if read > _BREATH_BYTES:
                read = 0
                await asyncio.sleep(0)
        check.end()
        return check

    async def _end_blob(self, writer: BlobWriter, digest: str) -> None:
        if writer.digest != digest:
            raise damaged(f"the blob {digest} is not what its name says")
        await writer.finish()
        self._writer = None
        self._kept.append(digest)
        del self._sizes[digest]

    async def _bounded(self, digest: str, bytes_max: int, what: str, setting: str) -> bytes:
        size = await self._of.blobs.size(digest)
        if size is None or size > bytes_max:
            message = f"The file has {what} of more than {bytes_max} bytes (`{setting}`)."
            raise TooLarge(message, code="export_too_large")
        return await self._of.blobs.get(digest) or b""

    async def _text(self, digest: str) -> None:
        limits = self._of.limits
        bytes_max = max(limits.file_text_bytes + 4096, limits.body_bytes)
        data = await self._bounded(digest, bytes_max, "a text", "limits.body_bytes")
        try:
            data.decode()
        except UnicodeDecodeError:
            raise invalid(f"the blob {digest} is to be a text, and is not UTF-8") from None

    # What is written.

    async def _new_files(
        self, manifest: Manifest, names: dict[str, str], *, new_ids: bool
    ) -> list[tuple[str, ExportedFile]]:
        """The files that the project does not have, with their ids in it; `names` learns of those that change."""
        new: list[tuple[str, ExportedFile]] = []
        now = int(self._of.clock.now() * 1000)
        for file in manifest.files:
            held = await self._of.files.get(self._project, file.id)
            if held is not None and held.state.digest == file.sha256:
                continue
            if held is not None and not new_ids:
                raise _exists(file.id)
            if held is not None:
                names[file.id.removeprefix("file-")] = ids.new_key()
            if not file.expires_at or file.expires_at > now:
                new.append((renamed_id(file.id, names), file))
        return new

    async def _check_free(self, conversations: list[str], runs: list[str]) -> None:
        for number, run_id in enumerate(runs):
            if await self._of.index.run(self._project, run_id) is not None:
                raise _exists(run_id)
            if number % 64 == 63:
                await asyncio.sleep(0)
        for conversation in conversations:
            if conversation and await self._of.index.conversation(self._project, conversation) is not None:
                raise _exists(conversation)

    async def _append(
        self, manifest: Manifest, conversation: str, records: list[tuple[Fact, int, int]], also: Sequence[Fact]
    ) -> None:
        """All of it in one commit, on a branch of its own."""
        drafts: list[Draft] = []
        if manifest.conversation is not None:
            created = ConversationCreated(conversation, manifest.conversation.metadata)
            drafts.append(Draft(kind_of(created), encode(created), manifest.conversation.created_at))
        first = len(drafts)
        for number, (record, at, run) in enumerate(records):
            sealed = self._sealed(record)
            drafts.append(Draft(kind_of(sealed), encode(sealed), at, first + run if run >= 0 else -1))
            if number % 256 == 255:
                await asyncio.sleep(0)
        now = int(self._of.clock.now() * 1000)
        drafts += [Draft(kind_of(record), encode(record), now) for record in also]
        branch = Branch(ids.new_id("br"), self._project)
        await self._of.journal.append(Append(self._project, branch.id, -1, drafts, create=branch))

    def _sealed(self, record: Fact) -> Fact:
        """With what another installation had sealed, sealed by this one."""
        match record:
            case RunStarted() | RunSteered():
                return msgspec.structs.replace(record, input=[self._sealed_item(item) for item in record.input])
            case ItemsAdded():
                return msgspec.structs.replace(record, items=[self._sealed_item(item) for item in record.items])
            case ItemFinished():
                return msgspec.structs.replace(record, item=self._sealed_item(record.item))
            case _:
                return record

    def _sealed_item(self, item: Item) -> Item:
        text = opened_of(item)
        return item if text is None else {**item, "encrypted_content": self._of.sealer.seal(self._project, text)}


def too_large(bytes_max: int) -> TooLarge:
    return TooLarge(f"The file has more than {bytes_max} bytes (`limits.import_bytes`).", code="export_too_large")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise invalid(otherwise)


def _exists(identifier: str) -> IdExists:
    return IdExists(
        f"There is a {identifier[:64]!r} in this project already. Import the file into another project, or with "
        "`ids=new`, which gives everything in it ids of its own."
    )
