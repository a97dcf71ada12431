"""Ids of their own for what is imported: wherever one of a response, a conversation or a file stands. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from stateroom import ids
from stateroom.agent.compaction import COMPACTION, Carried, Compacted, from_sealed, to_seal
from stateroom.journal.entries import Fact, Item, ItemFinished, ItemsAdded, RunStarted, RunSteered
from stateroom.wire.export import opened_of, with_opened


def renamed(record: Fact, names: Mapping[str, str]) -> Fact:
    """The record with new keys in the place of old ones; `names` has each old key that goes, with its new one."""
    if not names:
        return record
    match record:
        case RunStarted():
            return msgspec.structs.replace(
                record,
                id=renamed_id(record.id, names),
                previous=renamed_id(record.previous, names),
                conversation=renamed_id(record.conversation, names),
                input=[_item(item, names) for item in record.input],
            )
        case RunSteered():
            return msgspec.structs.replace(record, input=[_item(item, names) for item in record.input])
        case ItemsAdded():
            key = names.get(record.key, record.key)
            return msgspec.structs.replace(record, key=key, items=[_item(item, names) for item in record.items])
        case ItemFinished():
            return msgspec.structs.replace(record, item=_item(record.item, names))
        case _:
            return record


def renamed_id(identifier: str, names: Mapping[str, str]) -> str:
    """The same for one id: of a response, a conversation, a file or an item."""
    parsed = ids.parse_item_id(identifier)
    if parsed is not None and parsed[0] in names:
        at = len(identifier) - 4 - len(parsed[0])
        return identifier[:at] + names[parsed[0]] + identifier[-4:]
    for prefix in ("resp_", "conv_", "file-"):
        key = identifier.removeprefix(prefix)
        if key != identifier and key in names:
            return prefix + names[key]
    return identifier


def _item(item: Item, names: Mapping[str, str]) -> Item:
    changed = dict(item)
    if isinstance(item.get("id"), str):
        changed["id"] = renamed_id(item["id"], names)
    for field in ("content", "output"):
        if isinstance(item.get(field), list):
            changed[field] = [_part(part, names) for part in item[field]]
    if item.get("type") == COMPACTION:
        if "compacted" in item:
            compacted = _compacted(msgspec.convert(item["compacted"], Compacted), names)
            changed["compacted"] = msgspec.to_builtins(compacted)
        opened = opened_of(item)
        carried = from_sealed(opened) if opened is not None else None
        if carried is not None:
            sealed = to_seal(Carried(_compacted(carried.compacted, names), carried.created_by))
            changed = with_opened(changed, sealed)
    return changed


def _compacted(compacted: Compacted, names: Mapping[str, str]) -> Compacted:
    tail_ids = compacted.tail_ids
    return msgspec.structs.replace(
        compacted,
        tail_ids=None if tail_ids is None else [renamed_id(each, names) for each in tail_ids],
        kept=[_item(item, names) for item in compacted.kept],
        tail=[_item(item, names) for item in compacted.tail],
    )


def _part(part: Any, names: Mapping[str, str]) -> Any:
    if isinstance(part, dict) and isinstance(part.get("file_id"), str):
        return {**part, "file_id": renamed_id(part["file_id"], names)}
    return part
