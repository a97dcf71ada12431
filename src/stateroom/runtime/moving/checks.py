"""Whether the history in a file is one that this server could have written itself. Nothing is kept before all of it is.

What comes from clients is checked when it comes. What is imported as if it had come so passes the same checks; the
fields that only a server writes (blobs, what other servers get back, what compactions stand for) have their own.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from stateroom import ids
from stateroom.agent.carried import from_carried
from stateroom.agent.compaction import COMPACTION, Carried, Compacted, from_sealed, to_seal
from stateroom.agent.context import BY_REFERENCE, Context, blob_digests
from stateroom.agent.state import BranchState
from stateroom.errors import InvalidRequest
from stateroom.journal.entries import (
    Fact,
    Item,
    ItemAbandoned,
    ItemFinished,
    ItemsAdded,
    RunEnded,
    RunStarted,
    RunSteered,
    ToolIntent,
    ToolOutcome,
    Usage,
    decode,
)
from stateroom.journal.hosted_items import HOSTED_CALL
from stateroom.runtime.inputs import IMAGE_TYPES
from stateroom.runtime.moving.exports import file_ids
from stateroom.runtime.reading import RESPONSES
from stateroom.wire.decoding import Bounds
from stateroom.wire.export import Line, Manifest, invalid, is_key, opened_of, with_opened
from stateroom.wire.item_types import TYPES
from stateroom.wire.items import pack
from stateroom.wire.responses import ENDED, render_response

FUTURE_MS: Final = 24 * 3_600 * 1000
"""How far ahead of this server's clock another one's may be."""

_ERASED: Final = "erased"
_NUMBER_MAX: Final = 2**53
_PRIVATE: Final = ("upstream", "compacted")
_BLOBS: Final = tuple(name for name in BY_REFERENCE if name != "media_type")
_SHOULD_NOT: Final = (LookupError, TypeError, ValueError, AttributeError, AssertionError, msgspec.MsgspecError)
"""What code raises that is given what no server writes."""


class Checked(NamedTuple):
    """An entry that may be written."""

    record: Fact
    at: int
    run: int
    """Position of its run's first entry; -1 outside a run."""


class _HostedCall(msgspec.Struct):
    call_id: str
    name: str
    arguments: str = ""
    output: str = ""
    status: str = ""


class _Failure(msgspec.Struct):
    code: str | None = None
    message: str | None = None
    param: str | None = None
    status: int | None = None


class HistoryCheck:
    """Takes the lines of a history in, one after the other."""

    def __init__(self, manifest: Manifest, bounds: Bounds, *, context_items: int, now: int) -> None:
        self._manifest = manifest
        self._bounds = bounds
        self._context_items = context_items
        self._latest = now + FUTURE_MS
        self._blobs = frozenset(blob.sha256 for blob in manifest.blobs)
        self._state = BranchState()
        self._context = Context()
        self._run = -1
        self._index = -1
        """The output index that came last in the run."""
        self._finished: set[int] = set()
        self.entries: list[Checked] = []
        self.runs: dict[str, int] = {}
        """Ids of responses, with the position of their first entry."""
        self.keys: dict[str, None] = {}
        """Of responses and additions: they own ids of items."""
        self.items = 0
        self.used: dict[str, None] = {}
        """Blobs."""
        self.texts: dict[str, None] = {}
        """Those that are read as UTF-8."""
        self.tool_lists: dict[str, None] = {}
        """Those that hold declarations of tools."""
        self.images: dict[str, None] = {}
        self.file_ids: dict[str, None] = {}

    def add(self, line: Line) -> None:
        """The next line. Raises InvalidRequest."""
        number = len(self.entries) + 1
        try:
            record = self._checked(decode(line.kind, line.body), f"line {number}")
        except msgspec.MsgspecError as error:
            raise invalid(f"line {number} is not of its kind ({str(error)[:200]})") from None
        except InvalidRequest as error:
            raise invalid(f"line {number}: {error.message}") from None
        except RecursionError:
            raise invalid(f"line {number} nests too deeply") from None
        if line.at > self._latest:
            raise invalid(f"line {number} is from the future")
        at = len(self.entries)
        self._run = at if isinstance(record, RunStarted) else self._run
        self.entries.append(Checked(record, line.at, self._run))
        self._try(record, at, line.at, number)
        if isinstance(record, RunEnded):
            self._run = -1

    def end(self) -> None:
        """Whether it is whole, and what the manifest says. Raises InvalidRequest."""
        manifest = self._manifest
        if self._run != -1:
            raise invalid("its last response has not ended")
        if (manifest.items, manifest.responses) != (self.items, len(self.runs)):
            raise invalid("its manifest has other numbers of items and responses than its history")
        if (manifest.conversation is None) == (manifest.object == "conversation"):
            raise invalid("its manifest does not say which conversation it is")
        if manifest.object == "responses" and manifest.last_response not in list(self.runs)[-1:]:
            raise invalid("it does not end with the response that its manifest names")
        named = {file.id for file in manifest.files}
        if len(named) != len(manifest.files) or not named <= self.file_ids.keys():
            raise invalid("it has files that nothing refers to")
        used = self.used.keys() | {file.sha256 for file in manifest.files}
        if self._blobs - used:
            raise invalid("it has blobs that nothing refers to")
        if used - self._blobs:
            raise invalid("it lacks blobs that it refers to")

    def _checked(self, record: Fact, where: str) -> Fact:
        inside = self._run != -1
        if isinstance(record, RunStarted | ItemsAdded) == inside:
            raise invalid(f"{where} is not in its place")
        match record:
            case RunStarted():
                return self._started(record)
            case ItemsAdded():
                self._own_key(record.key)
                return msgspec.structs.replace(record, items=self._items(record.items, "items"), copied=-1)
            case RunSteered():
                _check(len(record.id) <= 256, "its id is too long")
                return RunSteered(record.id, self._items(record.input, "input"))
            case ItemFinished():
                return self._item_finished(record)
            case ItemAbandoned():
                self._next_index(record.index)
            case ToolIntent() | ToolOutcome():
                _check(record.index in self._finished, "it is about an item that is not there")
            case RunEnded():
                _check(record.status in ENDED, "its status is none")
                _check_usage(record.usage)
                _check(len(record.reason) <= 256, "its reason is too long")
                if record.error is not None:
                    msgspec.convert(record.error, _Failure)
            case _:
                raise invalid(f"{where} is of a kind that is not exported")
        return record

    def _started(self, record: RunStarted) -> RunStarted:
        conversation = self._manifest.conversation
        _check(is_key(record.id, "resp_"), "the id of the response is none")
        _check(record.id not in self.runs, "the response is there twice")
        _check(record.surface == RESPONSES, "it is no response")
        _check(len(record.previous) <= 256, "`previous` is too long")
        inside = (conversation.id,) if conversation else ()
        _check(record.conversation in ("", *inside), "it belongs to another conversation")
        self._own_key(ids.key_of(record.id))
        self.runs[record.id] = len(self.entries)
        self._finished.clear()
        self._index = -1
        settings = record.settings
        _check(len(settings.tools) <= self._bounds.tools, "it has too many tools")
        for digest, kept in (
            (settings.tools_blob, self.tool_lists),
            (settings.instructions_blob, self.texts),
        ):
            if digest:
                self._use(digest)
                kept[digest] = None
        return msgspec.structs.replace(record, input=self._items(record.input, "input"), key="")

    def _item_finished(self, record: ItemFinished) -> ItemFinished:
        self._next_index(record.index)
        self._finished.add(record.index)
        _check(len(record.finish) <= 64, "`finish` is too long")
        _check_usage(record.usage)
        return msgspec.structs.replace(record, item=self._items([record.item], "item")[0])

    def _next_index(self, index: int) -> None:
        _check(self._index < index < ids.ORDINAL_MAX - ids.OUTPUT_BASE, "its output index is not in order")
        self._index = index

    def _own_key(self, key: str) -> None:
        _check(is_key(key), "the key of its ids is none")
        _check(key not in self.keys, "the key of its ids is there twice")
        self.keys[key] = None

    def _items(self, items: list[Item], path: str) -> list[Item]:
        _check(len(items) < ids.OUTPUT_BASE, "it has too many items")
        whole = [self._item(item, f"{path}[{n}]") for n, item in enumerate(items)]
        self.items += len(whole)
        _check(self.items <= self._context_items, "there are too many items (`limits.context_items`)")
        for digest in blob_digests(whole):
            self._use(digest)
        self.file_ids.update(dict.fromkeys(file_ids(whole)))
        return whole

    def _item(self, item: Any, path: str) -> Item:
        checked = checked_item(item, path, self._bounds, self._blobs)
        for part in _parts(checked):
            if "blob" in part:
                _check(part.get("media_type") in IMAGE_TYPES, "an image is of no type that is taken")
                self.images[part["blob"]] = None
            if "text_blob" in part:
                self.texts[part["text_blob"]] = None
        return checked

    def _use(self, digest: str) -> None:
        _check(digest in self._blobs, "it refers to a blob that is not in the file")
        self.used[digest] = None

    def _try(self, record: Fact, seq: int, at: int, number: int) -> None:
        """Fold it, let a model see it, and show it: what cannot be handled is found here and not later."""
        run, before = self._state.open, len(self._state.items)
        try:
            self._state.apply_record(seq, self._run, at, record)
            new = self._state.items[before:]
            if new:
                self._context.extend(new, {})
            if run is not None and self._state.open is None:
                render_response(run.view())
        except _SHOULD_NOT as error:
            raise invalid(f"line {number} holds what no server writes ({str(error)[:200]})") from None


def checked_item(item: Any, path: str, bounds: Bounds, blobs: Container[str] = ()) -> Item:
    """An item as it is kept. Raises InvalidRequest; `blobs` are those it may refer to."""
    _check(isinstance(item, dict), "an item is no object")
    kind = item.get("type", "message")
    _check(isinstance(kind, str), "the type of an item is no text")
    if kind == _ERASED:
        _check(len(item) == 1, "an erased item holds something")
        return dict(item)
    _check(kind != "item_reference", "it holds a reference in the place of an item")
    opened = opened_of(item)
    bare = {name: value for name, value in item.items() if name not in _PRIVATE}
    if opened is not None:
        bare["encrypted_content"] = "sealed"
    bare, references = _without_references(bare, blobs)
    if kind == HOSTED_CALL:
        msgspec.convert(bare, _HostedCall)
        packed = bare
    elif kind not in TYPES and isinstance(item.get("upstream"), dict):
        packed = bare  # of a model server that knows more types than we do
    else:
        packed = _packed(bare, path, bounds)
    whole = {**_with_references(packed, references), **_private(item, kind, path, bounds)}
    if opened is not None:
        whole = with_opened(whole, _opened(opened, kind, path, bounds))
    return {name: whole[name] for name in item if name in whole} | whole


def _packed(bare: Item, path: str, bounds: Bounds) -> Item:
    """What packing makes of it; the same object, when that is only without what can be derived."""
    packed = pack(bare, path, bounds)
    known = TYPES[bare.get("type", "message")].derived
    less = {name: value for name, value in bare.items() if name not in known or known[name] != value}
    return bare if less == packed else packed


def _private(item: Item, kind: str, path: str, bounds: Bounds) -> dict[str, Any]:
    """The fields that only servers write."""
    private: dict[str, Any] = {}
    if "upstream" in item:
        upstream = item["upstream"]
        _check(isinstance(upstream, dict) and isinstance(upstream.get("at"), str), "`upstream` is none")
        private["upstream"] = upstream
    if "compacted" in item:
        _check(kind == COMPACTION, "it compacts, and is no compaction item")
        compacted = msgspec.convert(item["compacted"], Compacted)
        private["compacted"] = msgspec.to_builtins(_compacted(compacted, path, bounds))
    return private


def _opened(text: str, kind: str, path: str, bounds: Bounds) -> str:
    """The opened text of an item, checked: it is about to be sealed, and then it is trusted."""
    if kind == COMPACTION:
        carried = from_sealed(text)
        _check(carried is not None, "its opened text is no compaction")
        assert carried is not None, "as was checked"
        return to_seal(Carried(_compacted(carried.compacted, path, bounds), carried.created_by))
    _check(kind == "reasoning", "it is sealed, and of no type that is")
    fields = from_carried(text)
    for part in [*fields.get("summary", ()), *fields.get("content", ())]:
        _check(isinstance(part.get("text"), str), "its opened text is no reasoning")
    return text


def _compacted(compacted: Compacted, path: str, bounds: Bounds) -> Compacted:
    _check(0 <= compacted.keep <= _NUMBER_MAX, "`keep` is out of range")
    kept = [checked_item(each, f"{path}.kept", bounds) for each in compacted.kept]
    tail = [checked_item(each, f"{path}.tail", bounds) for each in compacted.tail]
    _check(all(is_said.get("type", "message") == "message" for is_said in kept), "it keeps what nobody said")
    programs = [checked_item(each, f"{path}.programs", bounds) for each in compacted.programs]
    return msgspec.structs.replace(compacted, kept=kept, tail=tail, programs=programs)


class _Reference(NamedTuple):
    """What a part of an item keeps elsewhere."""

    field: str
    place: int
    named: dict[str, str]
    stand_in: str
    """The field that the part was given, so that it has a source; '' when it has one."""


def _without_references(item: Item, blobs: Container[str]) -> tuple[Item, list[_Reference]]:
    """The item as a caller might send it, and what its parts refer to."""
    bare = dict(item)
    found: list[_Reference] = []
    for field in ("content", "output"):
        parts = item.get(field)
        for n, part in enumerate(parts if isinstance(parts, list) else ()):
            named = {name: part[name] for name in part if name in BY_REFERENCE} if isinstance(part, dict) else {}
            if not named:
                continue
            digests = [named[name] for name in _BLOBS if name in named]
            there = all(isinstance(digest, str) and digest in blobs for digest in digests)
            _check(bool(digests) and there, "it refers to what is not in the file")
            _check(isinstance(named.get("media_type", ""), str), "`media_type` is no text")
            rest = {name: value for name, value in part.items() if name not in named}
            reference = _Reference(field, n, named, _stand_in(rest))
            bare[field] = list(bare[field])
            bare[field][n] = {**rest, reference.stand_in: "-"} if reference.stand_in else rest
            found.append(reference)
    return bare, found


def _stand_in(part: Mapping[str, Any]) -> str:
    """The field in which the bytes were sent that are kept by reference."""
    if part.get("type") == "input_file":
        return "" if part.get("file_url") or part.get("file_id") else "file_data"
    return "" if part.get("image_url") or part.get("file_id") else "image_url"


def _with_references(item: Item, found: Iterable[_Reference]) -> Item:
    whole = dict(item)
    for field, n, named, stand_in in found:
        part = {name: value for name, value in whole[field][n].items() if name != stand_in}
        whole[field] = list(whole[field])
        whole[field][n] = {**part, **named}
    return whole


def _parts(item: Item) -> list[dict[str, Any]]:
    found = [item[field] for field in ("content", "output") if isinstance(item.get(field), list)]
    return [part for parts in found for part in parts if isinstance(part, dict)]


def _check_usage(usage: Usage | None) -> None:
    if usage is not None:
        counts = (usage.input, usage.output, usage.cached, usage.reasoning)
        _check(all(0 <= count <= _NUMBER_MAX for count in counts), "its usage is out of range")


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise InvalidRequest(otherwise)
