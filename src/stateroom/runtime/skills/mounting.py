"""From the skills that a request names to folders that a sandbox has mounted, and to what the model is told of them."""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from stateroom.blobs.hold import BlobHold
from stateroom.errors import InvalidRequest, RequestError
from stateroom.runtime.skills.manifest import MANIFEST, checked
from stateroom.runtime.skills.receiving import GATHERED_BYTES, in_thread
from stateroom.runtime.skills.refusals import bad_archive, upload_too_large, version_not_found
from stateroom.runtime.skills.skills import Skills
from stateroom.wire.skills import InlineSkill, LocalSkill, SkillReference, read_skills, read_version
from stateroom.workspaces.workspace import Mount

MOUNTED_AT: Final = "/skills"
HELD_SECONDS: Final = 60.0
"""How long a skill that was resolved without a hold keeps its place, for an entry to refer to it."""
_LATEST: Final = "latest"

_INSTRUCTIONS: Final = f"""## Skills

The folders below hold instructions and scripts for certain tasks. When one fits what is asked for, read its {MANIFEST}
first, and follow it; paths in it are relative to its folder."""
_READ_ONLY: Final = " The folders are read-only: copy what you want to change."


class MountedSkill(msgspec.Struct, frozen=True, omit_defaults=True):
    """A skill as an environment has it. Whatever remembers one refers to the blob of its digest."""

    name: str
    description: str
    version: int
    """0: it was in the request."""
    digest: str
    """Of the zip that is kept."""
    skill_id: str = ""

    @property
    def path(self) -> str:
        """Its folder inside a sandbox."""
        return f"{MOUNTED_AT}/{self.name}"


class SkillMounting:
    """What environments ask of skills."""

    def __init__(self, skills: Skills, bytes_max: int) -> None:
        self._skills = skills
        self._bytes_max = bytes_max

    async def resolve(
        self, project: str, references: Sequence[Any], *, hold: BlobHold | None = None, param: str = "skills"
    ) -> list[MountedSkill]:
        """The skills that a request names at `param`, references and inline ones, as they are at this moment.

        Their blobs keep their place until `hold` ends, or for a minute: an entry has to refer to them by then.
        Raises NotFound, InvalidRequest, TooLarge, StorageError.
        """
        place = hold.add if hold is not None else self._hold_for_a_while
        mounted: list[MountedSkill] = []
        for number, each in enumerate(read_skills(references, param)):
            where = f"{param}[{number}]"
            if isinstance(each, InlineSkill):
                skill = await self._inline(each, place, where)
            else:
                skill = await self._referred(project, each, place, where)
            if any(skill.name == other.name for other in mounted):
                message = f"Two skills are called {skill.name!r}: both would be at {skill.path}."
                raise InvalidRequest(message, code="duplicate_skill_name", param=where)
            mounted.append(skill)
        return mounted

    async def declared(self, project: str, skills: Sequence[Mapping[str, Any]], param: str) -> list[dict[str, Any]]:
        """The same as what a record remembers of them; `blobs_of` says what it has to refer to."""
        return [msgspec.to_builtins(skill) for skill in await self.resolve(project, skills, param=param)]

    async def described(self, project: str, references: Sequence[Any], param: str) -> list[MountedSkill]:
        """The same for who is only told of them: nothing is unpacked and nothing held. Raises as `resolve`."""
        told: list[MountedSkill] = []
        for number, each in enumerate(read_skills(references, param)):
            if isinstance(each, InlineSkill):
                said = checked(each.name, each.description, "of the inline skill")
                told.append(MountedSkill(said.name, said.description, 0, ""))
            else:
                told.append(await self._referred(project, each, lambda digest: None, f"{param}[{number}]"))
        return told

    async def mounts(self, project: str, skills: Sequence[Mapping[str, Any]]) -> list[Mount]:
        """Folders with these skills, which are unpacked where they are not yet. Raises StorageError."""
        remembered = remembered_skills(skills)
        return [Mount(str(await self._skills.folders.folder(each.digest)), each.path) for each in remembered]

    async def let_go(self) -> None:
        """Remove the folders of skills that nothing refers to any more, and that no sandbox has mounted."""
        await self._skills.folders.sweep()

    async def _referred(
        self, project: str, asked: SkillReference, place: Callable[[str], None], where: str
    ) -> MountedSkill:
        skill = await self._skills.get(project, asked.skill_id, f"{where}.skill_id")
        version = skill.default
        if asked.version is not None:
            latest = asked.version == _LATEST
            number = skill.state.versions[-1] if latest else read_version(asked.version)
            if number not in skill.state.versions:
                raise version_not_found(asked.skill_id, str(asked.version), f"{where}.version")
            version = await self._skills.version(project, skill.id, number, param=f"{where}.version")
        said = version.state
        place(said.digest)
        return MountedSkill(said.name, said.description, said.number, said.digest, skill.id)

    async def _inline(self, asked: InlineSkill, place: Callable[[str], None], where: str) -> MountedSkill:
        try:
            said = checked(asked.name, asked.description, "of the inline skill")
        except RequestError as refused:
            refused.param = where
            raise
        data = f"{where}.source.data"
        if len(asked.source.data) // 4 * 3 - 2 > self._bytes_max:
            raise _about(upload_too_large(self._bytes_max), data)
        try:
            async with self._skills.receiving() as received:
                await received.begin("skill.zip")
                for at in range(0, len(asked.source.data), GATHERED_BYTES):
                    await received.write(await in_thread(partial(_decoded, asked.source.data, at)))
                bundle = await received.pack()
                place(bundle.digest)  # before the block is left, which would else take the blob away again
                await received.finish()
        except RequestError as refused:
            raise _about(refused, data) from None
        return MountedSkill(said.name, said.description, 0, bundle.digest)

    def _hold_for_a_while(self, digest: str) -> None:
        hold = self._skills.held.hold()
        hold.add(digest)
        asyncio.get_running_loop().call_later(HELD_SECONDS, hold.__exit__, None, None, None)


def remembered_skills(remembered: Sequence[Mapping[str, Any]]) -> list[MountedSkill]:
    """What `SkillMounting.declared` gave."""
    return msgspec.convert(list(remembered), list[MountedSkill])


def blobs_of(remembered: Sequence[Mapping[str, Any]]) -> list[str]:
    """The blobs to which a record that remembers these skills has to refer."""
    return list(dict.fromkeys(skill.digest for skill in remembered_skills(remembered)))


def instructions(skills: Sequence[MountedSkill]) -> str:
    """What the model is told of its skills; nothing when it has none."""
    return _told(_INSTRUCTIONS + _READ_ONLY, skills)


def local_instructions(skills: Sequence[LocalSkill]) -> str:
    """The same of skills on the client's machine."""
    return _told(_INSTRUCTIONS, skills)


def _told(introduction: str, skills: Sequence[MountedSkill] | Sequence[LocalSkill]) -> str:
    if not skills:
        return ""
    lines = [
        f"- {skill.name}: {' '.join(skill.description.split())} ({skill.path.rstrip('/')}/{MANIFEST})"
        for skill in skills
    ]
    return "\n".join([introduction, "", *lines])


def _decoded(data: str, at: int) -> bytes:
    try:
        return binascii.a2b_base64(data[at : at + GATHERED_BYTES], strict_mode=True)
    except (binascii.Error, ValueError):
        raise bad_archive("it is not base64") from None


def _about(refused: RequestError, param: str) -> RequestError:
    refused.param = param
    return refused
