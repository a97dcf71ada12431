"""What a skill says of itself: the name and the description at the beginning of its SKILL.md."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

import msgspec

from stateroom.runtime.skills.front_matter import HEAD_BYTES, Unreadable, read_front_matter
from stateroom.runtime.skills.refusals import bad_manifest

MANIFEST: Final = "SKILL.md"
NAME_MAX: Final = 64
DESCRIPTION_MAX: Final = 1_024
"""Characters of it; every model that may use the skill reads them all."""

_NAME: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


class Manifest(msgspec.Struct, frozen=True):
    name: str
    description: str


def read_manifest(head: bytes) -> Manifest:
    """From the beginning of a SKILL.md, of which `HEAD_BYTES` are enough. Raises InvalidRequest."""
    try:
        said = read_front_matter(head[:HEAD_BYTES], ("name", "description"))
    except Unreadable as why:
        raise bad_manifest(f"The front matter of {MANIFEST} {why}.") from None
    for field in ("name", "description"):
        if field not in said:
            raise bad_manifest(f"The front matter of {MANIFEST} has no `{field}`.")
    return checked(said["name"], said["description"], f"in {MANIFEST}")


def checked(name: str, description: str, where: str) -> Manifest:
    """Raises InvalidRequest."""
    name, description = name.strip(), description.strip()
    if len(name) > NAME_MAX or not _NAME.fullmatch(name):
        raise bad_manifest(
            f"The `name` {where} must have 1 to {NAME_MAX} lower-case letters (a-z), digits and single hyphens between "
            "them."
        )
    if not 1 <= len(description) <= DESCRIPTION_MAX:
        raise bad_manifest(f"The `description` {where} must have 1 to {DESCRIPTION_MAX} characters.")
    if any(unicodedata.category(each) in ("Cc", "Cs") and each not in "\n\t" for each in description):
        raise bad_manifest(f"The `description` {where} has characters that cannot be seen.")
    return Manifest(name, description)
