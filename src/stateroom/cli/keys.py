"""`stateroom keys`: make, list and revoke access keys. Works on the data directory, beside a running server or without.

From the first key on the server asks for one, on loopback too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stateroom.cli.client import AsJson
from stateroom.cli.configuration import load_settings
from stateroom.cli.failure import USAGE, CommandFailed
from stateroom.cli.serve import Config, Data
from stateroom.cli.terminal import moment, safe, say, show_fields, show_json, show_table
from stateroom.errors import StateroomError
from stateroom.settings import PROJECT_NAME, PROJECT_RULE

if TYPE_CHECKING:
    from stateroom.access.keys import Key, Keys

UNITS = {"m": 60, "h": 3_600, "d": 86_400, "w": 604_800, "y": 31_536_000}


def commands() -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help="Make, list and revoke access keys.")
    group.command("create")(create_key)
    group.command("list")(list_keys)
    group.command("revoke")(revoke_key)
    return group


def create_key(
    name: Annotated[str, typer.Option(help="What it is for, so that it can be told from others.")] = "",
    project: Annotated[
        str, typer.Option(help="Whose rows it works on: nothing of another project is seen.")
    ] = "default",
    scopes: Annotated[str, typer.Option(help="What it may do: read, write, admin, parted by commas.")] = "read,write",
    expires: Annotated[str, typer.Option(metavar="90d", help="When it ends: 12h, 90d, 1y from now.")] = "",
    requests_per_minute: Annotated[int, typer.Option(min=0, help="Requests a minute; 0: no limit of its own.")] = 0,
    tokens_per_minute: Annotated[int, typer.Option(min=0, help="Tokens a minute; 0: no limit of its own.")] = 0,
    runs: Annotated[int, typer.Option(min=0, help="Runs at the same time; 0: no limit of its own.")] = 0,
    data: Data = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, this once. A running server knows it at once, and asks for a key from then on."""
    from stateroom.access.rates import Allowance  # lazy: `stateroom --help` must not pay for it

    if not PROJECT_NAME.fullmatch(project):
        raise CommandFailed(f"{safe(project)!r} is no name for a project; {PROJECT_RULE}.", exit_code=USAGE)
    wanted = _scopes(scopes)
    seconds = _seconds(expires)
    folder = _folder(data, config)
    with _opened(folder, make=True) as keys:
        key, secret = keys.create(
            project=project,
            name=name,
            scopes=wanted,
            expires_at=keys.now() + seconds * 1000 if seconds else 0,
            allowance=Allowance(requests_per_minute, tokens_per_minute, runs),
        )
        shown = _described(key, keys.now())
    if as_json:
        show_json({**shown, "key": secret})
        return
    say(secret)
    say(
        f"{key.id} in {folder}: project {key.project}, {' and '.join(key.scopes)}. It is not shown again.",
        style="dim",
        err=True,
    )


def list_keys(
    project: Annotated[str, typer.Option(help="Those of this project alone.")] = "",
    every: Annotated[bool, typer.Option("--all", help="Those that were revoked or have expired, too.")] = False,
    data: Data = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List the keys, oldest first; the keys themselves are not kept anywhere."""
    with _opened(_folder(data, config)) as keys:
        found = [_described(key, keys.now()) for key in keys.all() if not project or key.project == project]
    shown = [key for key in found if every or key["status"] == "active"]
    if as_json:
        show_json(shown)
        return
    columns = ("id", "project", "name", "scopes", "ends in", "created", "expires", "status")
    rows = (
        (key["id"], key["project"], key["name"], ",".join(key["scopes"]), f"…{key['hint']}")
        + (moment(key["created_at"]), moment(key["expires_at"]) if key["expires_at"] else "never", key["status"])
        for key in shown
    )
    show_table(columns, rows, empty="No keys: whoever reaches the server on this machine may use it.")


def revoke_key(
    identifier: Annotated[str, typer.Argument(metavar="ID", help="The key's id, key_…")],
    data: Data = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Revoke a key: no request with it is let in any more. What runs already goes on."""
    with _opened(_folder(data, config)) as keys:
        key = keys.revoke(identifier)
        shown = _described(key, keys.now()) if key is not None else {}
    if key is None:
        raise CommandFailed(
            f"There is no key {safe(identifier)}.", remedy="`stateroom keys list` shows the ids; they begin with key_."
        )
    if as_json:
        show_json(shown)
        return
    show_fields([("key", key.id), ("name", key.name or "none"), ("status", shown["status"])])


def _folder(data: str | None, config: Path | None) -> Path:
    return Path(load_settings(config, os.environ, {"data": data}).data)


@contextmanager
def _opened(folder: Path, *, make: bool = False) -> Iterator[Keys]:
    from stateroom.access.keys import FILE, open_keys  # lazy: `stateroom --help` must not pay for SQLite

    if not make and not folder.is_dir():
        raise CommandFailed(
            f"There is no data directory {folder}.", remedy="Name the server's with --data.", exit_code=USAGE
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(open_keys(folder / FILE)) as keys:
            yield keys
    except StateroomError as error:
        raise CommandFailed(error.message) from None
    except OSError as error:
        raise CommandFailed(f"{folder} cannot be used: {error.strerror}.") from None


def _scopes(text: str) -> list[str]:
    from stateroom.access.principal import SCOPES  # lazy: as above

    wanted = [part.strip().lower() for part in text.split(",") if part.strip()]
    unknown = [scope for scope in wanted if scope not in SCOPES]
    if unknown or not wanted:
        raise CommandFailed(f"--scopes: expected some of {', '.join(SCOPES)}, got {safe(text)!r}.", exit_code=USAGE)
    return wanted


def _seconds(text: str) -> int:
    """A span such as 90d in seconds; 0 for none."""
    if not text:
        return 0
    found = re.fullmatch(r"([1-9][0-9]{0,5})([mhdwy])", text.strip())
    if found is None:
        raise CommandFailed(f"--expires: expected a span such as 12h, 90d or 1y, got {safe(text)!r}.", exit_code=USAGE)
    return int(found.group(1)) * UNITS[found.group(2)]


def _described(key: Key, now: int) -> dict[str, Any]:
    """Everything that may be known of it, times in seconds."""
    return {
        "id": key.id,
        "project": key.project,
        "name": key.name,
        "scopes": list(key.scopes),
        "hint": key.hint,
        "status": key.standing(now),
        "created_at": key.created_at // 1000,
        "expires_at": key.expires_at // 1000 or None,
        "revoked_at": key.revoked_at // 1000 or None,
        "requests_per_minute": key.allowance.requests_per_minute or None,
        "tokens_per_minute": key.allowance.tokens_per_minute or None,
        "runs": key.allowance.runs or None,
    }
