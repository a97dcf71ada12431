"""Skills: folders with instructions and scripts, in numbered versions that never change.

A skill is a record that knows its versions by number; a version is a record of its own, with the one zip that is kept
of it as a blob. So what a version says is erased with it. Both are changed in one commit: there is no moment at which a
crash could leave a version without its skill, or a number that leads nowhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

import msgspec

from stateroom import ids
from stateroom.blobs.hold import HeldBlobs
from stateroom.blobs.store import Blobs
from stateroom.clock import Clock
from stateroom.errors import InvalidRequest
from stateroom.journal.entries import Fact, RecordDropped
from stateroom.runtime.cursors import check_cursors
from stateroom.runtime.files.files import Incoming
from stateroom.runtime.records import Held, Records
from stateroom.runtime.skills.folders import SkillFolders
from stateroom.runtime.skills.receiving import Bundle, Receiving
from stateroom.runtime.skills.refusals import skill_not_found, version_not_found
from stateroom.runtime.skills.zip_reader import Bounds
from stateroom.settings import Limits

COLLECTION: Final = "skill"
VERSIONS: Final = "skill_version"
AT_ONCE: Final = 2
"""Skills that are unpacked and checked at the same time."""
FOLDER: Final = "skills"
"""In the data directory: what is being received, and unpacked skills."""


class SkillState(msgspec.Struct, frozen=True):
    """State of the collection `skill`."""

    default: int
    next: int
    """The number that the next version gets. None is given twice."""
    versions: tuple[int, ...]
    """Those that are there, in their order."""


class VersionState(msgspec.Struct, frozen=True):
    """State of the collection `skill_version`."""

    skill: str
    number: int
    name: str
    description: str
    files: int
    bytes: int
    """Of its files together."""
    digest: str
    """Of the zip that is kept."""
    size: int
    """Of that zip."""


class Version(msgspec.Struct, frozen=True):
    """A version as it stands."""

    id: str
    state: VersionState
    created_at: int
    """Milliseconds since the epoch."""


class Skill(msgspec.Struct, frozen=True):
    """A skill as it stands, with its default version."""

    id: str
    state: SkillState
    default: Version
    created_at: int
    """Milliseconds since the epoch."""


class Skills:
    """The skills of all projects."""

    def __init__(
        self, records: Records, blobs: Blobs, held: HeldBlobs, clock: Clock, limits: Limits, data: Path
    ) -> None:
        self._records = records
        self._skills = records.collection(COLLECTION, SkillState)
        self._versions = records.collection(VERSIONS, VersionState)
        self._blobs = blobs
        self.held = held
        self._limits = limits
        self._bounds = Bounds(
            files=limits.skill_files,
            file_bytes=limits.skill_file_bytes,
            bytes=limits.skill_unpacked_bytes,
            ratio=limits.skill_ratio,
        )
        self._scratch = data / FOLDER / "incoming"
        self._places = asyncio.Semaphore(AT_ONCE)
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()
        self.folders = SkillFolders(blobs, data / FOLDER / "unpacked", clock, bytes_max=limits.skill_cache_bytes)

    def receiving(self) -> Receiving:
        """For a skill of which it shows at its end what becomes of it."""
        incoming = Incoming(self._blobs, self.held, self._records.index)
        return Receiving(incoming, self._scratch, self._bounds, self._places)

    async def create(
        self, project: str, received: Receiving, bundle: Bundle, *, skill_id: str, also: Sequence[Fact] = ()
    ) -> Skill:
        """A new skill, whose first version this is. Raises StorageError."""
        await received.finish()
        version_id, version = self._new_version(skill_id, 1, bundle)
        held = await self._skills.create(project, skill_id, SkillState(1, 2, (1,)), also=(version, *also))
        received.keep()
        return Skill(
            skill_id, held.state, Version(version_id, _state(skill_id, 1, bundle), held.created_at), held.created_at
        )

    async def add_version(
        self,
        project: str,
        skill_id: str,
        received: Receiving,
        bundle: Bundle,
        *,
        default: bool,
        also: Callable[[str], Sequence[Fact]] = lambda _: (),
    ) -> Version:
        """One more version. `also` gives by its id what is committed with it. Raises NotFound, InvalidRequest."""
        await received.finish()
        async with self._lock(project, skill_id):
            state = (await self._held(project, skill_id)).state
            if len(state.versions) >= self._limits.skill_versions:
                raise InvalidRequest(
                    f"The skill has {len(state.versions)} versions already (`limits.skill_versions`). Delete some.",
                    code="too_many_skill_versions",
                )
            number = state.next
            version_id, version = self._new_version(skill_id, number, bundle)
            changed = await self._change(
                project,
                skill_id,
                SkillState(number if default else state.default, number + 1, (*state.versions, number)),
                (version, *also(version_id)),
            )
            received.keep()
        return Version(version_id, _state(skill_id, number, bundle), changed.changed_at)

    async def get(self, project: str, skill_id: str, param: str = "skill_id") -> Skill:
        """Raises NotFound."""
        found = await self._shown(project, await self._held(project, skill_id, param))
        if found is None:
            raise skill_not_found(skill_id, param)
        return found

    async def page(
        self, project: str, *, after: str = "", before: str = "", limit: int = 20, descending: bool = True
    ) -> tuple[list[Skill], bool]:
        """By age, and whether there are more. Raises InvalidRequest on unknown cursors."""
        await check_cursors(partial(self._skills.get, project), "skill", after=after, before=before)
        rows = await self._skills.page(project, after=after, before=before, limit=limit, descending=descending)
        shown = [await self._shown(project, held) for held in rows[:limit]]
        return [skill for skill in shown if skill is not None], len(rows) > limit

    async def version(
        self, project: str, skill_id: str, number: int, *, asked: str = "", param: str = "version"
    ) -> Version:
        """Raises NotFound. `asked` is how the request called it."""
        held = await self._versions.get(project, version_id_of(skill_id, number)) if number else None
        if held is None or held.state.skill != skill_id:
            await self._held(project, skill_id)
            raise version_not_found(skill_id, asked or str(number), param)
        return Version(held.id, held.state, held.created_at)

    async def numbers(self, project: str, skill_id: str) -> tuple[int, ...]:
        """The versions that are there, oldest first. Raises NotFound."""
        return (await self._held(project, skill_id)).state.versions

    async def some_versions(self, project: str, skill_id: str, numbers: Sequence[int]) -> list[Version]:
        """These versions, as far as they are there."""
        found = [await self._versions.get(project, version_id_of(skill_id, number)) for number in numbers]
        return [Version(held.id, held.state, held.created_at) for held in found if held is not None]

    async def set_default(self, project: str, skill_id: str, number: int, *, asked: str = "") -> Skill:
        """Raises NotFound."""
        async with self._lock(project, skill_id):
            state = (await self._held(project, skill_id)).state
            if number not in state.versions:
                raise version_not_found(skill_id, asked or str(number), "default_version")
            await self._change(project, skill_id, msgspec.structs.replace(state, default=number))
            return await self.get(project, skill_id)

    async def delete(self, project: str, skill_id: str) -> None:
        """Erase it with all its versions. Raises NotFound."""
        async with self._lock(project, skill_id):
            await self._drop(project, await self._held(project, skill_id))
        await self.folders.sweep()

    async def delete_version(self, project: str, skill_id: str, number: int, *, asked: str = "") -> str:
        """Erase a version, and the skill with its last one; its id. Raises NotFound, InvalidRequest."""
        version_id = version_id_of(skill_id, number)
        async with self._lock(project, skill_id):
            held = await self._held(project, skill_id)
            state = held.state
            if number not in state.versions:
                raise version_not_found(skill_id, asked or str(number))
            if len(state.versions) == 1:
                await self._drop(project, held)
            elif number == state.default:
                raise InvalidRequest(
                    f"Version {number} is the default version of the skill. Make another one the default first.",
                    code="default_skill_version",
                    param="version",
                )
            else:
                rest = tuple(each for each in state.versions if each != number)
                # In one commit: no crash can come in between. What it leaves to be erased goes at the next start.
                gone = (RecordDropped(VERSIONS, version_id),)
                await self._change(project, skill_id, msgspec.structs.replace(state, versions=rest), gone)
                await self._versions.drop(project, version_id)
        await self.folders.sweep()
        return version_id

    def read(self, version: Version, *, first: int = 0, last: int | None = None) -> AsyncGenerator[bytes, None]:
        """The zip of a version, from `first` to `last` (inclusive). Raises StorageError when it is gone."""
        return self._blobs.chunks(version.state.digest, first=first, last=last)

    def _new_version(self, skill_id: str, number: int, bundle: Bundle) -> tuple[str, Fact]:
        version_id = version_id_of(skill_id, number)
        return version_id, self._versions.put(version_id, _state(skill_id, number, bundle), blobs=[bundle.digest])

    async def _shown(self, project: str, held: Held[SkillState]) -> Skill | None:
        """None when it is gone. Its default may change, and be deleted, while it is looked for."""
        while True:
            found = await self._versions.get(project, version_id_of(held.id, held.state.default))
            if found is not None:
                return Skill(held.id, held.state, Version(found.id, found.state, found.created_at), held.created_at)
            again = await self._skills.get(project, held.id)
            if again is None or again.state == held.state:
                return None
            held = again

    async def _change(
        self, project: str, skill_id: str, state: SkillState, also: Sequence[Fact] = ()
    ) -> Held[SkillState]:
        changed = await self._skills.update(project, skill_id, lambda _: state, also=also)
        if changed is None:  # whoever changes one has its lock, so this is for erasures of another kind
            raise skill_not_found(skill_id)
        return changed

    async def _drop(self, project: str, held: Held[SkillState]) -> None:
        version_ids = [version_id_of(held.id, number) for number in held.state.versions]
        async with self._records.changing(project, COLLECTION, held.id):
            dropped = [RecordDropped(COLLECTION, held.id), *(RecordDropped(VERSIONS, each) for each in version_ids)]
            await self._records.append(project, COLLECTION, held.id, dropped)
        for version_id in version_ids:
            await self._versions.drop(project, version_id)
        await self._skills.drop(project, held.id)

    async def _held(self, project: str, skill_id: str, param: str = "skill_id") -> Held[SkillState]:
        held = await self._skills.get(project, skill_id)
        if held is None:
            raise skill_not_found(skill_id, param)
        return held

    def _lock(self, project: str, skill_id: str) -> asyncio.Lock:
        lock = self._locks.get((project, skill_id))
        if lock is None:
            lock = self._locks[project, skill_id] = asyncio.Lock()
        return lock


def new_skill_id() -> str:
    return ids.new_id("skill")


def version_id_of(skill_id: str, number: int) -> str:
    """Versions are found from their skill and number alone."""
    return ids.item_id("skillver", ids.key_of(skill_id), number)


def _state(skill_id: str, number: int, bundle: Bundle) -> VersionState:
    said = bundle.manifest
    return VersionState(
        skill_id, number, said.name, said.description, bundle.files, bundle.bytes, bundle.digest, bundle.size
    )
