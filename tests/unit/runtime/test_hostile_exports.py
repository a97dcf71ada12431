"""Exports and imports that mean harm: too many at a time, and histories with what no server writes."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from stateroom.errors import InvalidRequest, TooMany
from stateroom.runtime.moving.exports import AT_ONCE_MAX, AT_ONCE_PROJECT, Export
from tests.unit.runtime.stage import user
from tests.unit.runtime.test_export import Place, changed, elsewhere


async def conversation(place: Place, project: str) -> str:
    created = await place.conversations.create(project, metadata={}, items=[user("hello")])
    return created.id


async def test_as_many_exports_are_in_memory_as_there_are_places_and_no_project_has_them_all() -> None:
    place = Place()
    things = {project: await conversation(place, project) for project in ("p", "q", "r")}
    held: list[Export] = []
    for project in ("p", "q"):
        for _ in range(AT_ONCE_PROJECT):
            held.append(await place.exporter.conversation(project, things[project]))
        with pytest.raises(TooMany) as refused:
            await place.exporter.conversation(project, things[project])
        assert refused.value.code == "too_many_exports"
    assert len(held) == AT_ONCE_MAX
    with pytest.raises(TooMany):
        await place.exporter.conversation("r", things["r"])
    held.pop()
    gc.collect()
    assert await place.exporter.conversation("r", things["r"])


async def test_an_export_that_fails_keeps_no_place() -> None:
    place = Place(history_bytes=10)
    thing = await conversation(place, "p")
    for _ in range(2 * AT_ONCE_MAX):
        with pytest.raises(Exception, match="export_history_bytes"):
            await place.exporter.conversation("p", thing)
    place.exporter._history_bytes = 1 << 20
    assert await place.exporter.conversation("p", thing)


@pytest.mark.parametrize(
    "item",
    [
        {"type": [], "role": "user", "content": "x"},
        {"type": {}, "role": "user", "content": "x"},
        {"role": "user", "content": [{"type": "input_image", "media_type": "image/png", "blob": []}]},
        {"role": "user", "content": [{"type": "input_file", "text_blob": {}}]},
        {"role": "user", "content": [{"type": "input_file", "data_blob": None, "text_blob": 5}]},
    ],
)
async def test_what_cannot_be_looked_up_is_refused_and_breaks_nothing(item: dict[str, Any]) -> None:
    place = Place()
    data = await place.export(await conversation(place, "p"))

    def replace(lines: list[Any]) -> None:
        lines[-1]["body"]["items"] = [item]

    other = elsewhere()
    with pytest.raises(InvalidRequest) as refused:
        await other.take(changed(data, replace))
    assert refused.value.code == "invalid_export"
    assert await other.nothing_is_left()
