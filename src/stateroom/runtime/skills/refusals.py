"""What a skill is refused for: each kind of fault has a code of its own, whoever finds it."""

from __future__ import annotations

from stateroom.errors import InvalidRequest, NotFound, TooLarge

PARAM = "files"
"""Where a skill is in a request, unless whoever asked knows better."""


def bad_archive(why: str) -> InvalidRequest:
    """The zip is none, is damaged, contradicts itself, or uses what no skill needs."""
    return InvalidRequest(f"The zip cannot be read: {why}.", code="invalid_skill_archive", param=PARAM)


def encrypted(path: str) -> InvalidRequest:
    message = f"{shown(path)} is encrypted. Send the zip without a password."
    return InvalidRequest(message, code="skill_archive_encrypted", param=PARAM)


def bad_path(path: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"The path {shown(path)} cannot be used: {why}.", code="invalid_skill_path", param=PARAM)


def duplicate_path(path: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"The path {shown(path)} {why}.", code="duplicate_skill_path", param=PARAM)


def not_a_file(path: str, kind: str) -> InvalidRequest:
    message = f"{shown(path)} is {kind}. A skill has files and folders only."
    return InvalidRequest(message, code="unsupported_skill_file", param=PARAM)


def too_large(message: str) -> TooLarge:
    return TooLarge(message, code="skill_too_large", param=PARAM)


def upload_too_large(bytes_max: int) -> TooLarge:
    """More was sent than one skill may have."""
    return too_large(f"The skill is larger than {bytes_max} bytes (`limits.skill_bytes`).")


def too_many_files(most: int) -> InvalidRequest:
    message = f"The skill has more than {most} files (`limits.skill_files`)."
    return InvalidRequest(message, code="too_many_skill_files", param=PARAM)


def bad_manifest(why: str) -> InvalidRequest:
    """SKILL.md is missing, is there twice, or does not say what it has to."""
    return InvalidRequest(why, code="invalid_skill_manifest", param=PARAM)


def skill_not_found(skill_id: str, param: str = "skill_id") -> NotFound:
    """Missing, deleted and foreign look the same."""
    return NotFound(f"Skill with id '{skill_id[:256]}' not found.", code="skill_not_found", param=param)


def version_not_found(skill_id: str, version: str, param: str = "version") -> NotFound:
    message = f"Version '{version[:64]}' of the skill '{skill_id[:256]}' not found."
    return NotFound(message, code="skill_version_not_found", param=param)


def shown(path: str) -> str:
    """A hostile path for a message: bounded, and without anything that a terminal would obey."""
    return ascii(path[:100])
