"""Skills: their operations, and the shapes of their answers."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from stateroom.wire.openapi.operations import PAGE, Body, Operation, Parameter, Surface
from stateroom.wire.openapi.schemas import Schema, Time, any_of, deleted, fields, list_of, page_of, ref, text, whole

_FORM: Final = "multipart/form-data"
_BYTES: Final[Schema] = {"type": "string", "contentMediaType": "application/octet-stream", "format": "binary"}
_NUMBER: Final[Schema] = text(pattern="^[1-9][0-9]{0,8}$")
_RANGE: Final = Parameter("Range", text(), "A range of bytes, such as `bytes=0-1023`.", "header")
_CREATE: Final = """A zip in one field `files`, or the files of a folder in fields `files[]`, whose filenames are paths.
In either case there is one SKILL.md, at the top or in the one folder at the top."""


class Skill(msgspec.Struct):
    """A folder with instructions and scripts, in versions."""

    id: str
    object: Literal["skill"]
    created_at: Time
    name: str
    description: str
    default_version: str
    latest_version: str


class SkillVersion(msgspec.Struct):
    id: str
    object: Literal["skill.version"]
    created_at: Time
    skill_id: str
    version: str
    name: str
    description: str


def surface() -> Surface:
    """All of it."""
    return Surface(
        name="Skills",
        about="Folders with instructions and scripts for agents, in versions that never change.",
        operations=(*_skills(), *_versions()),
        shapes=(Skill, SkillVersion),
        schemas={
            "CreateSkill": fields(_sent()),
            "CreateSkillVersion": fields({**_sent(), "default": {"type": "boolean", "default": False}}),
            "UpdateSkill": fields(
                {"default_version": any_of(_NUMBER, {"type": "integer", "minimum": 1})}, ("default_version",)
            ),
            "SkillList": page_of("Skill"),
            "SkillVersionList": page_of("SkillVersion"),
            "DeletedSkill": deleted("skill.deleted"),
            "DeletedSkillVersion": whole(
                {
                    "id": text(),
                    "object": {"const": "skill.version.deleted"},
                    "deleted": {"const": True},
                    "version": text(),
                }
            ),
        },
    )


def _sent() -> dict[str, Any]:
    return {
        "files": {**_BYTES, "description": "One zip."},
        "files[]": list_of(_BYTES, description="The files of a folder."),
    }


def _skills() -> tuple[Operation, ...]:
    return (
        Operation(
            place="POST /v1/skills",
            name="createSkill",
            summary="Upload a skill",
            about=" ".join(_CREATE.split()),
            body=Body(ref("CreateSkill"), media=_FORM),
            answer=ref("Skill"),
            scope="write",
            makes=True,
            python='skill = client.skills.create(files=open("geometry.zip", "rb"))',
        ),
        Operation(
            place="GET /v1/skills",
            name="listSkills",
            summary="List skills",
            query=PAGE,
            answer=ref("SkillList"),
            errors=(400, 404),
            scope="read",
            python="client.skills.list()",
        ),
        Operation(
            place="GET /v1/skills/{skill_id}",
            name="getSkill",
            summary="Retrieve what is known of a skill",
            about="Name and description are those of its default version.",
            answer=ref("Skill"),
            errors=(404,),
            scope="read",
            python="client.skills.retrieve(skill.id)",
        ),
        Operation(
            place="POST /v1/skills/{skill_id}",
            name="updateSkill",
            summary="Make another version the default one",
            body=Body(ref("UpdateSkill"), examples={"the first one": {"default_version": "1"}}),
            answer=ref("Skill"),
            errors=(404,),
            scope="write",
            python='client.skills.update(skill.id, default_version="1")',
        ),
        Operation(
            place="DELETE /v1/skills/{skill_id}",
            name="deleteSkill",
            summary="Delete a skill with all its versions",
            answer=ref("DeletedSkill"),
            errors=(404,),
            scope="write",
            python="client.skills.delete(skill.id)",
        ),
        Operation(
            place="GET /v1/skills/{skill_id}/content",
            name="getSkillContent",
            summary="Download the default version as a zip, or a range of it",
            query=(_RANGE,),
            media={"application/octet-stream": dict(_BYTES)},
            errors=(404, 416),
            scope="read",
            python="client.skills.content.retrieve(skill.id).read()",
        ),
    )


def _versions() -> tuple[Operation, ...]:
    return (
        Operation(
            place="POST /v1/skills/{skill_id}/versions",
            name="createSkillVersion",
            summary="Upload a new version of a skill",
            about="It becomes the default one only with `default`.",
            body=Body(ref("CreateSkillVersion"), media=_FORM),
            answer=ref("SkillVersion"),
            errors=(404,),
            scope="write",
            makes=True,
            python='version = client.skills.versions.create(skill.id, files=open("geometry.zip", "rb"), default=True)',
        ),
        Operation(
            place="GET /v1/skills/{skill_id}/versions",
            name="listSkillVersions",
            summary="List the versions of a skill",
            query=PAGE,
            answer=ref("SkillVersionList"),
            errors=(400, 404),
            scope="read",
            python="client.skills.versions.list(skill.id)",
        ),
        Operation(
            place="GET /v1/skills/{skill_id}/versions/{version}",
            name="getSkillVersion",
            summary="Retrieve what is known of a version",
            answer=ref("SkillVersion"),
            errors=(404,),
            scope="read",
            python='client.skills.versions.retrieve("1", skill_id=skill.id)',
        ),
        Operation(
            place="DELETE /v1/skills/{skill_id}/versions/{version}",
            name="deleteSkillVersion",
            summary="Delete a version",
            about="Not the default one, unless it is the last: then the skill goes with it.",
            answer=ref("DeletedSkillVersion"),
            errors=(404,),
            scope="write",
            python='client.skills.versions.delete("1", skill_id=skill.id)',
        ),
        Operation(
            place="GET /v1/skills/{skill_id}/versions/{version}/content",
            name="getSkillVersionContent",
            summary="Download a version as a zip, or a range of it",
            query=(_RANGE,),
            media={"application/octet-stream": dict(_BYTES)},
            errors=(404, 416),
            scope="read",
            python='client.skills.versions.content.retrieve("1", skill_id=skill.id).read()',
        ),
    )
