"""Making a run's input whole before it is written: references, images, files, sealed reasoning, large settings.

All that can fail because of the caller fails here, before anything is journalled.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from functools import partial
from typing import Any

import msgspec

from stateroom import ids
from stateroom.access.outbound import OutboundGuard
from stateroom.access.sealing import Sealer
from stateroom.agent.carried import from_carried
from stateroom.agent.compaction import COMPACTION, from_sealed
from stateroom.agent.context import BY_REFERENCE, blob_digests
from stateroom.agent.state import fold_run
from stateroom.blobs.hold import BlobHold, HeldBlobs
from stateroom.blobs.store import Blobs
from stateroom.errors import InvalidRequest, NotFound
from stateroom.journal.entries import PART_FIELDS, Entry, Item, ItemsAdded, RunSettings, RunStarted, decode
from stateroom.journal.store import Index, Journal, RunRow
from stateroom.runtime.files.inputs import SOURCES, FileBudget, FileInputs
from stateroom.settings import Limits
from stateroom.wire.declared_secrets import open_sealed, seal

BLOB_FROM_BYTES = 512
"""Tools and instructions beyond this size are kept once, by content hash, however often they are sent."""

IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")

READ_FACTOR = 2
"""The references of one request may have this many times `limits.body_bytes` read from the journal."""


class _Pulled:
    """What one request pulls in from elsewhere: bounded, and read only once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._downloads = 0
        self._downloaded = 0
        self._read = 0
        self.files = FileBudget(limits)
        self.items: dict[tuple[str, int], dict[str, Item]] = {}
        """Items by id, of runs by branch and seq of their first entry."""
        self.entries: dict[tuple[str, int], list[Item]] = {}
        """Items of single entries, by branch and seq."""

    def begin_download(self, param: str) -> None:
        """Raises InvalidRequest when there were too many."""
        self._downloads += 1
        if self._downloads > self._limits.image_downloads:
            message = (
                f"A request may name at most {self._limits.image_downloads} images by URL (`limits.image_downloads`). "
                "Send the others as data URLs."
            )
            raise InvalidRequest(message, code="too_many_images", param=param)

    def end_download(self, size: int, param: str) -> None:
        """Raises InvalidRequest when they are too large together."""
        self._downloaded += size
        if self._downloaded > self._limits.body_bytes:
            message = (
                f"The images that this request names by URL are larger than {self._limits.body_bytes} bytes together "
                "(`limits.body_bytes`)."
            )
            raise InvalidRequest(message, code="image_file_too_large", param=param)

    def read(self, entries: list[Entry]) -> list[Entry]:
        """Count what was read. Raises InvalidRequest when it is too much."""
        self._read += sum(len(entry.body) for entry in entries)
        if self._read > READ_FACTOR * self._limits.body_bytes:
            message = "The items that this request refers to are too large (`limits.body_bytes`). Refer to fewer."
            raise InvalidRequest(message, code="input_too_large", param="input")
        return entries


class Inputs:
    """Resolves what an input refers to."""

    def __init__(
        self,
        journal: Journal,
        index: Index,
        blobs: Blobs,
        held: HeldBlobs,
        guard: OutboundGuard,
        sealer: Sealer,
        limits: Limits,
        files: FileInputs,
    ) -> None:
        self._files = files
        self._journal = journal
        self._index = index
        self._blobs = blobs
        self._held = held
        self._guard = guard
        self._sealer = sealer
        self._limits = limits

    def hold(self) -> BlobHold:
        """Keeps the blobs of an entry in the making; hand it to `resolve` and `compact`."""
        return self._held.hold()

    async def resolve(
        self, project: str, items: Iterable[Item], *, present: frozenset[str], hold: BlobHold | None
    ) -> list[Item]:
        """The items with references replaced by what they name, images fetched and files read.

        References to items that are `present` in the branch already add nothing. Without a `hold` nothing is stored:
        images and the texts of files are in the items.
        """
        resolved: list[Item] = []
        pulled = _Pulled(self._limits)
        referenced: set[str] = set()
        for position, item in enumerate(items):
            kind = item.get("type")
            if any(True for _ in blob_digests([item])):
                message = f"'input[{position}]' has a part with `blob`, which is not a field that callers may set."
                raise InvalidRequest(message, code="invalid_value", param=f"input[{position}]")
            if kind == "item_reference":
                if item["id"] not in present and item["id"] not in referenced:
                    referenced.add(item["id"])
                    resolved.append(await self._referenced(project, item["id"], f"input[{position}].id", pulled))
            elif kind == COMPACTION:
                resolved.append(self._compaction(project, item, f"input[{position}]"))
            elif kind == "reasoning" and item.get("encrypted_content"):
                resolved.append(self._opened(project, item))
            else:
                resolved.append(await self._with_media(project, item, f"input[{position}]", pulled, hold=hold))
        return resolved

    async def _item(self, project: str, item_id: str, pulled: _Pulled) -> Item | None:
        """A stored item of the project by its id, wherever it stands; None when there is none."""
        parsed = ids.parse_item_id(item_id)
        if parsed is not None:
            key, ordinal = parsed
            row = await self._index.run(project, f"resp_{key}")
            if row is not None:
                items = await self._items_of(project, row, pulled)
                if item_id in items:
                    return items[item_id]
            return await self._added(project, key, ordinal, pulled) or await self._own_id(project, item_id, pulled)
        return await self._own_id(project, item_id, pulled)

    async def _items_of(self, project: str, row: RunRow, pulled: _Pulled) -> dict[str, Item]:
        place = (row.branch, row.start)
        items = pulled.items.get(place)
        if items is None:
            run = fold_run(pulled.read(await self._journal.read(project, row.branch, run=row.start)))
            all_items = [*run.input_items(0), *run.output_items(0)] if run is not None else []
            items = pulled.items[place] = {held.id: held.item for held in reversed(all_items)}
        return items

    async def _added(self, project: str, key: str, ordinal: int, pulled: _Pulled) -> Item | None:
        row = await self._index.item(project, key)
        if row is None:
            return None
        items = await self._items_at(project, row.branch, row.seq, pulled)
        return _living(items, ordinal)

    async def _own_id(self, project: str, item_id: str, pulled: _Pulled) -> Item | None:
        row = await self._index.item(project, item_id)
        if row is None:
            return None
        return _living(await self._items_at(project, row.branch, row.seq, pulled), row.position)

    async def _items_at(self, project: str, branch: str, seq: int, pulled: _Pulled) -> list[Item]:
        place = (branch, seq)
        if place not in pulled.entries:
            entries = pulled.read(await self._journal.read(project, branch, after=seq - 1, upto=seq))
            pulled.entries[place] = _items_in(entries)
        return pulled.entries[place]

    async def _referenced(self, project: str, item_id: str, param: str, pulled: _Pulled) -> Item:
        item = await self._item(project, item_id, pulled)
        if item is None:
            raise NotFound(
                f"Item with id '{item_id}' not found. Items are not kept when `store` is false; send the item itself.",
                code="item_not_found",
                param=param,
            )
        if item.get("type") == COMPACTION:
            item = self._compaction(project, item, param)
        return {**item, "id": item_id}

    def _compaction(self, project: str, item: Item, path: str) -> Item:
        """A compaction item with what it stands for, which clients carry sealed. Raises InvalidRequest."""
        opened = self._sealer.open(project, item["encrypted_content"])
        carried = from_sealed(opened) if opened is not None else None
        if carried is not None:
            return {**item, "compacted": msgspec.to_builtins(carried.compacted)}
        if "compacted" in item:  # our own, from the journal: it was sealed with a key that is gone
            return item
        raise InvalidRequest(
            f"The encrypted content of the compaction item '{path}' could not be read: it was not made by this server "
            "for this project, or was changed. Send compaction items as they came, or the items that they replaced.",
            code="invalid_encrypted_content",
            param=f"{path}.encrypted_content",
        )

    def _opened(self, project: str, item: Item) -> Item:
        carried = self._sealer.open(project, item["encrypted_content"])
        return item if carried is None else {**item, **from_carried(carried)}

    async def _with_media(self, project: str, item: Item, path: str, pulled: _Pulled, *, hold: BlobHold | None) -> Item:
        changed = item
        for field in ("content", "output"):
            parts = item.get(field)
            if isinstance(parts, dict) and _is_media(parts):  # a screenshot, which stays in the item
                shot = await self._media(project, parts, f"{path}.{field}", pulled, hold=None)
                changed = {**changed, field: shot}
            if not isinstance(parts, list) or not any(_is_media(part) for part in parts):
                continue
            whole = list(parts)
            for n, part in enumerate(parts):
                if _is_media(part):
                    whole[n] = await self._media(project, part, f"{path}.{field}[{n}]", pulled, hold=hold)
            changed = {**changed, field: whole}
        return changed

    async def _media(
        self, project: str, part: dict[str, Any], path: str, pulled: _Pulled, *, hold: BlobHold | None
    ) -> dict[str, Any]:
        if part["type"] == "input_file":
            return await self._files.part(project, part, path, pulled.files, hold=hold)
        if isinstance(part.get("image_url"), str):
            return await self._image(part, f"{path}.image_url", pulled, hold=hold)
        data, media_type = await self._files.image(project, part["file_id"], f"{path}.file_id")
        if hold is None:
            bare = {key: value for key, value in part.items() if key != "file_id"}
            encoded = base64.b64encode(data).decode("ascii")
            return {**bare, "image_url": f"data:{media_type};base64,{encoded}"}
        return {**part, "blob": await hold.put(data), "media_type": media_type}

    async def _image(
        self, part: dict[str, Any], param: str, pulled: _Pulled, *, hold: BlobHold | None
    ) -> dict[str, Any]:
        url = part["image_url"]
        if url.startswith("data:"):
            data, media_type = decode_data_url(url, param)
        else:
            pulled.begin_download(param)
            data, media_type = await self._guard.fetch(url, param=param, accept="image/*")
            pulled.end_download(len(data), param)
        if media_type not in IMAGE_TYPES:
            message = f"Images must be PNG, JPEG, GIF or WebP, not {media_type[:64]!r}."
            raise InvalidRequest(message, code="unsupported_image_media_type", param=param)
        if not data:
            raise InvalidRequest("The image is empty.", code="empty_image_file", param=param)
        if len(data) > self._limits.image_bytes:
            message = f"The image is larger than {self._limits.image_bytes} bytes (`limits.image_bytes`)."
            raise InvalidRequest(message, code="image_file_too_large", param=param)
        if hold is None:
            encoded = base64.b64encode(data).decode("ascii")
            return {**part, "image_url": f"data:{media_type};base64,{encoded}"}
        kept = {key: value for key, value in part.items() if key != "image_url" or not url.startswith("data:")}
        return {**kept, "blob": await hold.put(data), "media_type": media_type}

    def sealed(self, project: str, settings: RunSettings) -> RunSettings:
        """The settings as they may be kept and shown: secrets in declarations of tools are sealed."""
        tools = seal(settings.tools, partial(self._sealer.seal, project))
        return settings if tools is settings.tools else msgspec.structs.replace(settings, tools=tools)

    def opened(self, project: str, settings: RunSettings) -> RunSettings:
        """The settings with those secrets in clear, for who carries calls out."""
        tools = open_sealed(settings.tools, partial(self._sealer.open, project))
        return settings if tools is settings.tools else msgspec.structs.replace(settings, tools=tools)

    async def compact(self, settings: RunSettings, hold: BlobHold) -> RunSettings:
        """The settings as they are journalled: large tools and instructions become blobs."""
        changes: dict[str, Any] = {}
        if settings.tools:
            encoded = msgspec.json.encode(settings.tools)
            if len(encoded) > BLOB_FROM_BYTES:
                changes |= {"tools": [], "tools_blob": await hold.put(encoded)}
        if settings.instructions and len(settings.instructions) > BLOB_FROM_BYTES:
            changes |= {
                "instructions": None,
                "instructions_blob": await hold.put(settings.instructions.encode()),
            }
        return msgspec.structs.replace(settings, **changes) if changes else settings

    async def expand(self, settings: RunSettings) -> RunSettings:
        """The settings in full again."""
        changes: dict[str, Any] = {}
        if settings.tools_blob:
            data = await self._blobs.get(settings.tools_blob)
            changes["tools"] = msgspec.json.decode(data) if data else []
        if settings.instructions_blob:
            data = await self._blobs.get(settings.instructions_blob)
            changes["instructions"] = data.decode() if data else None
        return msgspec.structs.replace(settings, **changes) if changes else settings

    async def shown(self, item: Item) -> Item:
        """The item with its parts as they were sent, bytes in place again, for whoever is to see it."""
        if not any(True for _ in blob_digests([item])):
            return item
        changed = item
        for field in PART_FIELDS:
            parts = item.get(field)
            if isinstance(parts, list):
                changed = {**changed, field: [await self._shown_part(part) for part in parts]}
        return changed

    async def _shown_part(self, part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        bare = {key: value for key, value in part.items() if key not in BY_REFERENCE}
        if "data_blob" in part:
            encoded = base64.b64encode(await self._blobs.get(part["data_blob"]) or b"").decode("ascii")
            head = f"data:{part['media_type']};base64," if "media_type" in part else ""
            return {**bare, "file_data": head + encoded}
        if "blob" not in part or "image_url" in bare or "file_id" in bare:
            return bare
        data = await self._blobs.get(part["blob"])
        encoded = base64.b64encode(data or b"").decode("ascii")
        url = f"data:{part.get('media_type', '')};base64,{encoded}"
        return {**bare, "url" if part.get("type") == "image" else "image_url": url}


def decode_data_url(url: str, param: str) -> tuple[bytes, str]:
    """Content and media type of a base64 data URL. Raises InvalidRequest."""
    head, separator, body = url.partition(",")
    if not separator or not head.endswith(";base64"):
        message = "Data URLs must have the form data:image/png;base64,...."
        raise InvalidRequest(message, code="invalid_image_url", param=param)
    media_type = head[len("data:") : -len(";base64")].split(";")[0].lower()
    try:
        return base64.b64decode(body, validate=True), media_type
    except (binascii.Error, ValueError):
        raise InvalidRequest("The image is not valid base64.", code="invalid_base64_image", param=param) from None


def _is_media(part: Any) -> bool:
    if not isinstance(part, dict):
        return False
    if part.get("type") in ("input_image", "computer_screenshot"):
        return isinstance(part.get("image_url"), str) or isinstance(part.get("file_id"), str)
    return part.get("type") == "input_file" and any(isinstance(part.get(name), str) for name in SOURCES)


def _items_in(entries: list[Entry]) -> list[Item]:
    """The items of an entry, which is the only one or missing."""
    for entry in entries:
        record = decode(entry.kind, entry.body)
        if isinstance(record, ItemsAdded):
            return record.items
        if isinstance(record, RunStarted):
            return record.input
    return []


def _living(items: list[Item], position: int) -> Item | None:
    if position >= len(items) or items[position].get("type") == "erased":
        return None
    return items[position]
