"""Skills: versions that never change, kept and erased as one, and folders of them for sandboxes."""

from __future__ import annotations

import asyncio
import base64
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stateroom.blobs.store import BlobDamaged, digest_of
from stateroom.clock import Clock
from stateroom.errors import InvalidRequest, NotFound, RequestError, StorageError, StorageFull
from stateroom.runtime.idempotency import Idempotency
from stateroom.runtime.skills import mounting
from stateroom.runtime.skills.folders import MOUNTING_SECONDS
from stateroom.runtime.skills.mounting import MountedSkill, SkillMounting, blobs_of, instructions
from stateroom.runtime.skills.receiving import Bundle, Receiving
from stateroom.runtime.skills.skills import Skill, Skills, Version, new_skill_id
from stateroom.settings import Limits
from tests.bundles import FILES, files_of, manifest, zip_of
from tests.unit.runtime.stage import MovedClock, Stage


class Scene:
    """Skills on a runtime in memory. Another one on the same stage is what comes after a crash."""

    def __init__(self, data: Path, *, stage: Stage | None = None, **limits: int) -> None:
        self.stage = stage or Stage()
        self.clock: Clock = self.stage.clock
        self.skills = Skills(
            self.stage.all_records, self.stage.blobs, self.stage.held, self.clock, Limits(**limits), data
        )
        self.mounting = SkillMounting(self.skills, Limits().skill_bytes)
        self.data = data

    async def create(self, sent: bytes | None = None, *, project: str = "p", **options: Any) -> Skill:
        async with self.skills.receiving() as received:
            await received.begin("skill.zip")
            await received.write(zip_of() if sent is None else sent)
            bundle = await received.pack()
            return await self.skills.create(project, received, bundle, skill_id=new_skill_id(), **options)

    async def add(self, skill: Skill, sent: bytes, *, project: str = "p", default: bool = False) -> Version:
        async with self.skills.receiving() as received:
            await received.begin("skill.zip")
            await received.write(sent)
            bundle = await received.pack()
            return await self.skills.add_version(project, skill.id, received, bundle, default=default)

    async def content(self, version: Version) -> bytes:
        return b"".join([piece async for piece in self.skills.read(version)])

    async def blobs(self) -> int:
        return len(await self.stage.blobs.digests())

    def journalled(self) -> str:
        """All that the journal still says."""
        lines = vars(self.stage.journal)["_lines"].values()
        return repr([entry.body for line in lines for entry in line.entries])

    async def folder(self, digest: str) -> Path:
        return await self.skills.folders.folder(digest)


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "data"
    for above, _, _ in os.walk(tmp_path):
        Path(above).chmod(0o755)


def version_of(number: int) -> bytes:
    return zip_of({**FILES, "SKILL.md": manifest(description=f"Version {number}.")})


def inline(sent: bytes, name: str = "inlined") -> dict[str, Any]:
    source = {"type": "base64", "media_type": "application/zip", "data": base64.b64encode(sent).decode()}
    return {"type": "inline", "name": name, "description": "From a request.", "source": source}


def names(folder: Path | str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def on_disk(data: Path) -> list[Path]:
    return [path for path in data.rglob("*") if path.is_file()]


async def test_a_skill_has_versions_that_are_counted_on_and_never_reused(data: Path) -> None:
    scene = Scene(data)
    skill = await scene.create(version_of(1))
    assert (skill.state.default, skill.state.versions, skill.default.state.name) == (1, (1,), "geometry")
    second = await scene.add(skill, version_of(2))
    third = await scene.add(skill, version_of(3), default=True)
    assert (second.state.number, third.state.number) == (2, 3)
    skill = await scene.skills.get("p", skill.id)
    assert (skill.state.default, skill.default.state.description) == (3, "Version 3.")
    await scene.skills.set_default("p", skill.id, 2)
    await scene.skills.delete_version("p", skill.id, 3)
    assert (await scene.skills.get("p", skill.id)).state.versions == (1, 2)
    assert (await scene.add(skill, version_of(4))).state.number == 4
    assert files_of(await scene.content(second))["geometry/SKILL.md"] == manifest(description="Version 2.")
    assert on_disk(data) == []


async def test_versions_that_are_added_at_the_same_time_have_numbers_of_their_own(data: Path) -> None:
    scene = Scene(data)
    skill = await scene.create()
    added = await asyncio.gather(*[scene.add(skill, version_of(number)) for number in range(8)])
    assert sorted(version.state.number for version in added) == list(range(2, 10))
    assert await scene.skills.numbers("p", skill.id) == tuple(range(1, 10))


async def test_the_default_version_stays_until_another_one_is_and_the_last_one_takes_the_skill_along(
    data: Path,
) -> None:
    scene = Scene(data)
    skill = await scene.create(version_of(1))
    await scene.add(skill, version_of(2))
    with pytest.raises(InvalidRequest) as refused:
        await scene.skills.delete_version("p", skill.id, 1)
    assert (refused.value.code, refused.value.param) == ("default_skill_version", "version")
    await scene.skills.delete_version("p", skill.id, 2)
    await scene.skills.delete_version("p", skill.id, 1)
    with pytest.raises(NotFound):
        await scene.skills.get("p", skill.id)
    assert await scene.blobs() == 0


async def test_what_is_deleted_is_nowhere_any_more(data: Path) -> None:
    scene = Scene(data)
    skill = await scene.create(version_of(1))
    await scene.add(skill, version_of(2), default=True)
    await scene.skills.delete_version("p", skill.id, 1)
    assert "Version 1." not in scene.journalled()
    assert "Version 2." in scene.journalled()
    assert await scene.blobs() == 1
    await scene.skills.delete("p", skill.id)
    assert "Version" not in scene.journalled()
    assert await scene.blobs() == 0


async def test_the_same_content_is_kept_once_and_goes_with_the_last_version_that_has_it(data: Path) -> None:
    scene = Scene(data)
    first, second = await scene.create(), await scene.create(zip_of(folder="elsewhere/"))
    assert first.default.state.digest == second.default.state.digest
    assert await scene.blobs() == 1
    await scene.skills.delete("p", first.id)
    assert files_of(await scene.content(second.default))
    await scene.skills.delete("p", second.id)
    assert await scene.blobs() == 0


async def test_skills_of_others_look_missing(data: Path) -> None:
    scene = Scene(data)
    skill = await scene.create(project="other")
    for act in (
        lambda: scene.skills.get("p", skill.id),
        lambda: scene.skills.delete("p", skill.id),
        lambda: scene.skills.delete_version("p", skill.id, 1),
        lambda: scene.skills.version("p", skill.id, 1),
        lambda: scene.skills.set_default("p", skill.id, 1),
        lambda: scene.skills.numbers("p", skill.id),
        lambda: scene.add(skill, version_of(2)),
        lambda: scene.mounting.resolve("p", [{"type": "skill_reference", "skill_id": skill.id}]),
    ):
        with pytest.raises(NotFound) as refused:
            await act()  # type: ignore[no-untyped-call]
        assert refused.value.code == "skill_not_found"
    assert await scene.skills.page("p") == ([], False)
    with pytest.raises(NotFound):
        await scene.skills.version("other", skill.id.replace("skill_", "x_"), 1)


@pytest.mark.parametrize("sent", [b"", b"PK", b"no zip", zip_of({"README.md": b"x"}), zip_of()[:-1]])
async def test_what_is_refused_leaves_nothing(data: Path, sent: bytes) -> None:
    scene = Scene(data)
    with pytest.raises(RequestError):
        await scene.create(sent)
    assert await scene.blobs() == 0
    assert on_disk(data) == []
    assert await scene.skills.page("p") == ([], False)


async def test_a_disk_that_is_full_keeps_nothing(data: Path) -> None:
    scene = Scene(data)

    async def refuse(_: Any) -> None:
        raise StorageFull

    scene.stage.journal.append = refuse
    with pytest.raises(StorageFull):
        await scene.create()
    assert await scene.blobs() == 0
    assert on_disk(data) == []


async def test_versions_are_bounded(data: Path) -> None:
    scene = Scene(data, skill_versions=2)
    skill = await scene.create()
    await scene.add(skill, version_of(2))
    with pytest.raises(InvalidRequest) as refused:
        await scene.add(skill, version_of(3))
    assert refused.value.code == "too_many_skill_versions"
    assert await scene.blobs() == 2


async def test_a_key_makes_one_skill(data: Path) -> None:
    scene = Scene(data)
    idempotency = Idempotency(scene.stage.all_records)
    made = []
    for _ in range(2):
        async with idempotency.claim("p", "key", "POST", "/v1/skills", b"x") as claimed:
            if claimed.made:
                made.append(claimed.made)
                continue
            skill_id = new_skill_id()
            async with scene.skills.receiving() as received:
                await received.begin("skill.zip")
                await received.write(zip_of())
                bundle = await received.pack()
                await scene.skills.create("p", received, bundle, skill_id=skill_id, also=claimed.also(skill_id))
            made.append(skill_id)
    assert made[0] == made[1]


async def test_references_are_resolved_to_versions(data: Path) -> None:
    scene = Scene(data)
    skill = await scene.create(version_of(1))
    await scene.add(skill, version_of(2))
    for version, number in ((None, 1), ("latest", 2), (2, 2), ("1", 1)):
        reference = {"type": "skill_reference", "skill_id": skill.id, "version": version}
        (mounted,) = await scene.mounting.resolve("p", [reference])
        expected = (await scene.skills.version("p", skill.id, number)).state.digest
        assert (mounted.version, mounted.digest, mounted.skill_id) == (number, expected, skill.id)
        assert mounted.path == "/skills/geometry"


@pytest.mark.parametrize("version", [0, -1, 3, "01", "two", "", "default", 10**30])
async def test_a_version_that_is_not_there_is_said_to_be_missing(data: Path, version: Any) -> None:
    scene = Scene(data)
    skill = await scene.create()
    with pytest.raises(RequestError) as refused:
        await scene.mounting.resolve("p", [{"type": "skill_reference", "skill_id": skill.id, "version": version}])
    assert refused.value.code in ("skill_version_not_found", "invalid_type", "invalid_value")


async def test_an_inline_skill_is_checked_and_kept_as_long_as_something_refers_to_it(data: Path) -> None:
    scene = Scene(data)
    with scene.stage.held.hold() as hold:
        (mounted,) = await scene.mounting.resolve("p", [inline(zip_of())], hold=hold)
        assert (mounted.name, mounted.description, mounted.version) == ("inlined", "From a request.", 0)
        assert scene.stage.held.is_held(mounted.digest)
        things = scene.stage.all_records.collection("thing", MountedSkill)
        await things.create("p", "thing_1", mounted, blobs=[mounted.digest])
    assert not scene.stage.held.is_held(mounted.digest)
    skill = await scene.create()
    assert skill.default.state.digest == mounted.digest
    await scene.skills.delete("p", skill.id)
    assert await scene.stage.blobs.exists(mounted.digest)
    await things.drop("p", "thing_1")
    assert await scene.blobs() == 0


async def test_what_records_remember_of_skills_leads_to_mounts(data: Path) -> None:
    scene = Scene(data)
    skill = await scene.create()
    declared = [{"type": "skill_reference", "skill_id": skill.id}, inline(version_of(7))]
    remembered = await scene.mounting.declared("p", declared, "environment.skills")
    assert len(blobs_of(remembered)) == 2
    assert all(scene.stage.held.is_held(digest) for digest in blobs_of(remembered))
    mounts = await scene.mounting.mounts("p", msgspec.json.decode(msgspec.json.encode(remembered)))
    assert [mount.target for mount in mounts] == ["/skills/geometry", "/skills/inlined"]
    assert [names(mount.source) for mount in mounts] == [["SKILL.md", "area.py", "data"]] * 2


@pytest.mark.parametrize(
    ("skill", "code", "param"),
    [
        ({}, "missing_required_parameter", "s[0].type"),
        ({"type": "other"}, "invalid_value", "s[0].type"),
        ({"type": "skill_reference"}, "missing_required_parameter", "s[0].skill_id"),
        ({"type": "skill_reference", "skill_id": "x" * 65}, "string_above_max_length", "s[0].skill_id"),
        ({"type": "skill_reference", "skill_id": "skill_x"}, "skill_not_found", "s[0].skill_id"),
        (inline(b"no zip"), "invalid_skill_archive", "s[0].source.data"),
        (inline(zip_of({"README.md": b""})), "invalid_skill_manifest", "s[0].source.data"),
        (inline(zip_of(), name="../../etc"), "invalid_skill_manifest", "s[0]"),
        ({**inline(b""), "source": {"type": "base64", "media_type": "application/zip", "data": "%%%="}}, "", ""),
        ({**inline(b""), "source": {"type": "base64", "media_type": "text/plain", "data": "x"}}, "invalid_value", ""),
        ({**inline(b""), "source": {"type": "url", "media_type": "application/zip", "data": "x"}}, "invalid_value", ""),
    ],
)
async def test_skills_that_are_none_are_refused_where_they_stand(data: Path, skill: Any, code: str, param: str) -> None:
    scene = Scene(data)
    with pytest.raises(RequestError) as refused:
        await scene.mounting.resolve("p", [skill], param="s")
    assert refused.value.code == (code or "invalid_skill_archive")
    assert (refused.value.param or "").startswith(param or "s[0].source")
    assert await scene.blobs() == 0


async def test_two_skills_of_one_name_and_too_many_are_refused(data: Path) -> None:
    scene = Scene(data)
    with pytest.raises(InvalidRequest) as refused:
        await scene.mounting.resolve("p", [inline(zip_of()), inline(version_of(2))])
    assert (refused.value.code, refused.value.param) == ("duplicate_skill_name", "skills[1]")
    with pytest.raises(InvalidRequest) as refused:
        await scene.mounting.resolve("p", [{"type": "skill_reference", "skill_id": "skill_x"}] * 201)
    assert refused.value.code == "array_above_max_length"


def test_the_model_is_told_where_its_skills_are() -> None:
    skills = [MountedSkill("one", "Does\n  this.", 1, "d"), MountedSkill("two", "Does that.", 0, "e")]
    told = instructions(skills)
    assert told.splitlines()[-2:] == [
        "- one: Does this. (/skills/one/SKILL.md)",
        "- two: Does that. (/skills/two/SKILL.md)",
    ]
    assert instructions([]) == ""


async def test_a_folder_is_made_once_and_cannot_be_written(data: Path) -> None:
    scene = Scene(data)
    digest = (await scene.create()).default.state.digest
    first, second = await asyncio.gather(scene.folder(digest), scene.folder(digest))
    assert first == second
    made = (first / "area.py").stat()
    assert stat.S_IMODE(made.st_mode) == 0o555
    assert await scene.folder(digest) == first
    assert (first / "area.py").stat().st_ino == made.st_ino
    assert [path.name for path in first.parent.iterdir()] == [digest]


async def test_a_skill_is_unpacked_whole_or_not_at_all(data: Path, tmp_path: Path) -> None:
    scene = Scene(data)
    digest = (await scene.create()).default.state.digest
    where = tmp_path / "there"
    assert await scene.skills.folders.unpack(digest, where) > 0
    assert {path.name for path in where.iterdir()} == {"SKILL.md", "area.py", "data"}
    damaged = await scene.stage.blobs.put(b"PK other bytes")
    for wrong in (digest_of(b"nothing has it"), "../../etc", damaged):
        with pytest.raises((StorageError, RequestError)):
            await scene.skills.folders.unpack(wrong, tmp_path / "not")
    assert names(tmp_path) == ["data", "there"]


async def test_bytes_that_have_changed_on_the_disk_are_not_unpacked(data: Path, tmp_path: Path) -> None:
    scene = Scene(data)
    digest = (await scene.create()).default.state.digest
    scene.stage.blobs._kept[digest] += b"x"
    with pytest.raises(BlobDamaged):
        await scene.skills.folders.unpack(digest, tmp_path / "not")
    assert not (tmp_path / "not").exists()


async def test_folders_of_erased_skills_go_when_nobody_has_them_mounted(data: Path) -> None:
    clock = MovedClock()
    scene = Scene(data, stage=Stage(clock=clock))
    mounted: set[str] = set()
    scene.skills.folders.mounted = lambda: mounted
    skill = await scene.create()
    folder = await scene.folder(skill.default.state.digest)
    mounted.add(str(folder))
    clock.seconds += MOUNTING_SECONDS + 1
    await scene.skills.delete("p", skill.id)
    assert folder.is_dir()
    mounted.clear()
    await scene.skills.folders.sweep()
    assert list(folder.parent.iterdir()) == []


async def test_the_oldest_folders_make_room_and_mounted_ones_stay(data: Path) -> None:
    clock = MovedClock()
    scene = Scene(data, stage=Stage(clock=clock), skill_cache_bytes=50_000)
    mounted: set[str] = set()
    scene.skills.folders.mounted = lambda: mounted
    folders = []
    for number in range(6):
        skill = await scene.create(version_of(number))
        folders.append(await scene.folder(skill.default.state.digest))
        if number == 0:
            mounted.add(str(folders[0]))
        clock.seconds += MOUNTING_SECONDS + 1
    await scene.skills.folders.sweep()
    assert scene.skills.folders.size <= 50_000
    there = [folder.is_dir() for folder in folders]
    assert there[0]
    assert not there[1]
    assert there[-1]


async def test_what_an_earlier_process_unpacked_is_not_trusted(data: Path) -> None:
    scene = Scene(data)
    digest = (await scene.create()).default.state.digest
    folder = await scene.folder(digest)
    (folder / "area.py").chmod(0o644)
    (folder / "area.py").write_bytes(b"half")
    after = Scene(data, stage=scene.stage)
    await after.skills.folders.start()
    assert not folder.exists()
    assert (await after.folder(digest) / "area.py").read_bytes() == FILES["area.py"]


async def test_without_a_hold_a_blob_keeps_its_place_for_a_while_only(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounting, "HELD_SECONDS", 1.0)
    scene = Scene(data)
    pack = Receiving.pack

    async def slow(received: Receiving) -> Bundle:
        await asyncio.sleep(1.2)  # as when there is much to unpack: it counts from when there is something to hold
        return await pack(received)

    monkeypatch.setattr(Receiving, "pack", slow)
    (mounted,) = await scene.mounting.resolve("p", [inline(zip_of())])
    assert scene.stage.held.is_held(mounted.digest)
    async with asyncio.timeout(10):
        while scene.stage.held.is_held(mounted.digest):  # noqa: ASYNC110 - it says nothing of itself
            await asyncio.sleep(0.01)
