"""Skills in OpenAI's shapes: what requests say of them, and how they are shown. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from stateroom.errors import InvalidRequest
from stateroom.wire.decoding import decode, refuse_value

SKILLS_MAX: Final = 200
"""Skills of one environment."""
INLINE_MAX: Final = 70_254_592
"""Characters of a skill that is in the request itself."""
ID_MAX: Final = 64
VERSION_MAX: Final = 999_999_999

_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")


class DefaultVersion(msgspec.Struct):
    """A request to change a skill. Versions are numbers or their digits."""

    default_version: str | int


class SkillReference(msgspec.Struct, frozen=True, tag_field="type", tag="skill_reference"):
    """A skill of the project. Without `version` its default one."""

    skill_id: Annotated[str, msgspec.Meta(min_length=1, max_length=ID_MAX)]
    version: str | int | None = None


class InlineSource(msgspec.Struct, frozen=True):
    """A zip in a request."""

    type: Literal["base64"]
    media_type: Literal["application/zip"]
    data: Annotated[str, msgspec.Meta(min_length=1, max_length=INLINE_MAX)]


class InlineSkill(msgspec.Struct, frozen=True, tag_field="type", tag="inline"):
    """A skill that is in the request itself."""

    name: str
    description: str
    source: InlineSource


class LocalSkill(msgspec.Struct, frozen=True):
    """A folder on the client's machine."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    description: Annotated[str, msgspec.Meta(max_length=4096)]
    path: Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


NamedSkill: TypeAlias = SkillReference | InlineSkill

_DEFAULT_VERSION: Final = msgspec.json.Decoder(DefaultVersion)


def decode_default_version(body: bytes, depth: int) -> str:
    """Raises InvalidRequest."""
    return str(decode(_DEFAULT_VERSION, body, depth).default_version)


def read_skills(given: Sequence[Any], param: str) -> list[NamedSkill]:
    """The skills that an environment names, each of them as it was decoded. Raises InvalidRequest."""
    if len(given) > SKILLS_MAX:
        message = f"'{param}' has more than {SKILLS_MAX} skills."
        raise InvalidRequest(message, code="array_above_max_length", param=param)
    read: list[NamedSkill] = []
    for number, each in enumerate(given):
        try:
            read.append(msgspec.convert(each, NamedSkill))
        except msgspec.ValidationError as error:
            refuse_value(str(error), f"{param}[{number}]", NamedSkill)
    return read


def local_skills(tools: Sequence[Mapping[str, Any]]) -> list[LocalSkill]:
    """The skills of shells that clients run themselves, as their declarations were checked."""
    found: list[LocalSkill] = []
    for tool in tools:
        environment = tool.get("environment") if tool.get("type") == "shell" else None
        if isinstance(environment, Mapping) and environment.get("type") == "local":
            found += msgspec.convert(environment.get("skills") or [], list[LocalSkill])
    return found


def read_version(given: str | int) -> int:
    """The number of a version; 0 for what is none."""
    text = str(given)
    return int(text) if _NUMBER.fullmatch(text) else 0


def read_default(fields: Mapping[str, str]) -> bool:
    """Whether a form wants its version to be the default one. Raises InvalidRequest."""
    given = fields.get("default", "false").lower()
    if given not in ("true", "false"):
        raise InvalidRequest("'default' must be `true` or `false`.", code="invalid_value", param="default")
    return given == "true"


def skill_object(
    *, id: str, name: str, description: str, created_at: int, default_version: int, latest_version: int
) -> dict[str, Any]:
    """A skill; the time is in milliseconds."""
    return {
        "id": id,
        "object": "skill",
        "created_at": created_at // 1000,
        "name": name,
        "description": description,
        "default_version": str(default_version),
        "latest_version": str(latest_version),
    }


def version_object(
    *, id: str, skill_id: str, version: int, name: str, description: str, created_at: int
) -> dict[str, Any]:
    """A version of a skill; the time is in milliseconds."""
    return {
        "id": id,
        "object": "skill.version",
        "created_at": created_at // 1000,
        "skill_id": skill_id,
        "version": str(version),
        "name": name,
        "description": description,
    }


def deleted_skill(skill_id: str) -> dict[str, Any]:
    return {"id": skill_id, "object": "skill.deleted", "deleted": True}


def deleted_version(version_id: str, version: int) -> dict[str, Any]:
    return {"id": version_id, "object": "skill.version.deleted", "deleted": True, "version": str(version)}
