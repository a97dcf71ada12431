"""`stateroom projects`: which there are, and erasing one of them. `stateroom compact`: giving erased room back.

Erasing and compacting take the data directory: the server has to be stopped.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from stateroom.cli.client import AsJson
from stateroom.cli.configuration import load_settings
from stateroom.cli.failure import USAGE, CommandFailed, data_directory_failures
from stateroom.cli.serve import Config, Data, Progress
from stateroom.cli.terminal import is_terminal, safe, say, show_json
from stateroom.errors import StateroomError

if TYPE_CHECKING:
    from stateroom.journal.sqlite import SqliteJournal
    from stateroom.runtime.projects import Gone
    from stateroom.settings import Settings

_Answer = TypeVar("_Answer")


def commands() -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help="List the projects of a data directory, and erase one.")
    group.command("list")(list_projects)
    group.command("erase")(erase_project)
    return group


def list_projects(data: Data = None, config: Config = None, as_json: AsJson = False) -> None:
    """List the projects that anything was ever written for. The server has to be stopped."""
    names = _with_journal(_settings(data, config), lambda journal: journal.projects())
    if as_json:
        show_json(names)
        return
    for name in names:
        say(safe(name))


def erase_project(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The project.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data: Data = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Erase everything of a project and revoke its keys. The server has to be stopped. This cannot be undone.

    Responses, conversations, files, batches, webhooks: nothing of what they said
    is left in the data directory, nor in backups that are taken afterwards.
    Earlier backups still hold it.
    """
    settings = _settings(data, config)
    if not yes:
        if not is_terminal():
            raise CommandFailed("This erases a whole project: say so with --yes.", exit_code=USAGE)
        typer.confirm(f"Erase everything of project {name!r} in {settings.data}?", abort=True)
    gone = _with_journal(settings, lambda journal: _erase(journal, settings, name))
    keys = _retire_keys(Path(settings.data), name)
    if as_json:
        show_json({"project": name, **gone._asdict(), "keys": keys})
        return
    say(f"{safe(name)}: erased", style="green")
    say(f"entries {gone.entries:,}, blobs {gone.blobs:,}, keys revoked {keys:,}", style="dim")
    say("Backups that were taken before still hold it.", style="yellow", err=True)


def compact(data: Data = None, config: Config = None) -> None:
    """Give back the room on disk that erased content left in the journal. The server has to be stopped."""
    from stateroom.journal.layout import JOURNAL  # lazy: `stateroom --help` must not pay for the journal

    settings = _settings(data, config)
    path = Path(settings.data) / JOURNAL
    before = path.stat().st_size if path.exists() else 0
    _with_journal(settings, lambda journal: journal.compact())
    say(f"{path}: {before / 1e6:,.1f} MB before, {path.stat().st_size / 1e6:,.1f} MB now")


async def _erase(journal: SqliteJournal, settings: Settings, name: str) -> Gone:
    from stateroom.blobs.directory import open_directory  # lazy: as below
    from stateroom.clock import SystemClock  # lazy: as below
    from stateroom.journal.layout import BLOBS  # lazy: as below
    from stateroom.runtime import projects  # lazy: as below

    if name not in await journal.projects():
        raise CommandFailed(f"There is no project {name!r} in {settings.data}.")
    blobs = open_directory(Path(settings.data) / BLOBS, durability=settings.durability)
    with _progress() as progress:
        now = int(SystemClock().now() * 1000)
        gone = await projects.erase_project(journal, journal, blobs, name, at=now, progress=progress)
        await journal.compact()
        await _drop_files(journal, settings, name)
        await asyncio.to_thread(_drop_unpacked, Path(settings.data))
    return gone


def _drop_unpacked(data: Path) -> None:
    """Skills as sandboxes had them: copies, of all projects, which are made again when they are asked for."""
    from stateroom.runtime.skills.folders import remove_folder  # lazy: only this command needs it here
    from stateroom.runtime.skills.skills import FOLDER  # lazy: as above

    remove_folder(data / FOLDER)


async def _drop_files(journal: SqliteJournal, settings: Settings, project: str) -> None:
    """Let the files of its containers go from the content store, and from the folders of workspaces."""
    from stateroom.blobs.hold import HeldBlobs  # lazy: as below
    from stateroom.blobs.memory import MemoryBlobs  # lazy: as below
    from stateroom.clock import SystemClock  # lazy: as below
    from stateroom.runtime.containers.leaving import drop_unnamed, remove_folders  # lazy: as below
    from stateroom.runtime.records import Records  # lazy: as below
    from stateroom.workspaces.content.store import ContentStore  # lazy: as below
    from stateroom.workspaces.layout import CONTENT, LIVE  # lazy: `stateroom --help` must not pay for the journal

    data = Path(settings.data)
    await asyncio.to_thread(remove_folders, data / LIVE, project)
    if not (data / CONTENT).is_file():
        return
    unused = MemoryBlobs()
    records = Records(journal, journal, unused, HeldBlobs(unused), SystemClock())
    content = ContentStore(data / CONTENT, durability=settings.durability)
    try:
        await drop_unnamed(records, journal, content)
    finally:
        await content.close()


def _retire_keys(data: Path, project: str) -> int:
    from stateroom.access.keys import FILE, open_keys  # lazy: only this command needs them

    if not (data / FILE).exists():
        return 0
    keys = open_keys(data / FILE)
    try:
        return keys.retire(project)
    except StateroomError as error:
        raise CommandFailed(error.message) from None
    finally:
        keys.close()


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    shown = Progress()
    try:
        yield lambda entries: shown.show(f"erasing entries: {entries:,}")
    finally:
        shown.clear()


def _with_journal(settings: Settings, work: Callable[[SqliteJournal], Awaitable[_Answer]]) -> _Answer:
    """What `work` gives for the journal of a data directory that no server has. Lets only CommandFailed out."""
    from stateroom.journal.layout import JOURNAL  # lazy: `stateroom --help` must not pay for SQLite
    from stateroom.journal.lock import lock_directory  # lazy: as above
    from stateroom.journal.sqlite import open_sqlite  # lazy: as above

    path = Path(settings.data) / JOURNAL
    if not path.is_file():
        raise CommandFailed(f"There is no {JOURNAL} in {settings.data}: it is no data directory of Stateroom.")

    async def with_journal() -> _Answer:
        journal = open_sqlite(path, durability=settings.durability)
        try:
            return await work(journal)
        finally:
            await journal.close()

    with data_directory_failures():
        lock = lock_directory(path.parent)
        try:
            return asyncio.run(with_journal())
        finally:
            lock.release()


def _settings(data: str | None, config: Path | None) -> Settings:
    return load_settings(config, os.environ, {"data": data})
