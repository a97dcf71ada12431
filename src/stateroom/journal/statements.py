"""Reads the SQL that ships beside this file: numbered migrations and named queries."""

from __future__ import annotations

import re
from importlib import resources

import msgspec

from stateroom.errors import JournalDamaged

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_NUMBERED = re.compile(r"\A(\d{4})_(\w+)\.sql\Z")


class Migration(msgspec.Struct, frozen=True):
    """One step of the schema."""

    number: int
    name: str
    sql: str


def read_migrations() -> tuple[Migration, ...]:
    """The migrations that ship with this version, in order, numbered from 1 without gaps."""
    found = []
    for file in _folder().iterdir():
        match = _NUMBERED.match(file.name)
        if match:
            found.append(Migration(int(match.group(1)), match.group(2), file.read_text(encoding="utf-8")))
    found.sort(key=lambda migration: migration.number)
    if [migration.number for migration in found] != list(range(1, len(found) + 1)):
        raise JournalDamaged("The migrations of this installation are not complete: install it again.")
    return tuple(found)


def read_queries() -> dict[str, str]:
    """Every named query by its name, without its sentence."""
    queries: dict[str, str] = {}
    for name in ("queries.sql", "index.sql", "verify.sql"):
        parts = _NAME.split((_folder() / name).read_text(encoding="utf-8"))
        for query, text in zip(parts[1::2], parts[2::2], strict=True):
            lines = [line for line in text.splitlines() if line and not line.startswith("--")]
            queries[query] = "\n".join(lines).rstrip(";")
    return queries


def _folder() -> resources.abc.Traversable:
    return resources.files("stateroom.journal") / "sql"
