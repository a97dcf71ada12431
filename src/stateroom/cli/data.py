"""`stateroom verify`, `backup`, `restore` and `rebuild`: what an operator does with a data directory.

What each does is in the journal's modules of the same names; this file shows how far they are and what they found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from stateroom.cli.client import AsJson
from stateroom.cli.configuration import load_settings
from stateroom.cli.failure import ERROR, data_directory_failures
from stateroom.cli.serve import Config, Data, Progress
from stateroom.cli.terminal import is_terminal, safe, say, show_json

if TYPE_CHECKING:
    from stateroom.journal.verify_report import Report
    from stateroom.settings import Settings

BackupFolder: TypeAlias = Annotated[Path, typer.Argument(metavar="DIR", help="The backup's directory.")]


def verify(data: Data = None, config: Config = None, as_json: AsJson = False) -> None:
    """Look at everything in a data directory or a backup, and say what is damaged, where, and what to do.

    It only reads, and may run beside a server. Exit code 1: something is damaged.
    """
    from stateroom.journal.verify import verify_data  # lazy: `stateroom --help` must not pay for SQLite

    folder = Path(_settings(data, config).data)
    with _shown("verifying") as steps:
        report = verify_data(folder, steps.show)
    _tell(report, as_json, "Everything is as it was written.")


def backup(
    target: BackupFolder,
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy blobs instead of linking them, where they are on the same disk.")
    ] = False,
    data: Data = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Copy a data directory, beside a running server or without, to a directory that is empty or not there yet.

    It holds everything, the secret key and the access keys too: keep it as safe
    as the original. What it wrote is verified; exit code 1: do not rely on it.
    """
    from stateroom.clock import SystemClock  # lazy: as below
    from stateroom.journal.backup import Backup  # lazy: `stateroom --help` must not pay for SQLite

    folder = Path(_settings(data, config).data)
    with _shown("backing up") as steps:
        report = Backup(folder, target, SystemClock(), steps.show, link=not copy).make()
    well = f"{target} is a backup of {folder}. It has the secret key: keep it from others."
    _tell(report, as_json, well, f"{target} is no backup that can be restored.")


def restore(source: BackupFolder, data: Data = None, config: Config = None, as_json: AsJson = False) -> None:
    """Put a backup in the place of a data directory that is empty or not there, and verify it there.

    Never let the original server go on beside it: both would carry out the runs that were open.
    """
    from stateroom.journal import backup_restore  # lazy: `stateroom --help` must not pay for SQLite

    folder = Path(_settings(data, config).data)
    with _shown("restoring") as steps:
        report = backup_restore.restore(source, folder, steps.show)
    well = f"{source} is restored to {folder}: `stateroom serve --data {folder}` goes on from there."
    _tell(report, as_json, well, f"{folder} is nothing that a server starts on. Empty it, and use another backup.")


def rebuild(data: Data = None, config: Config = None, as_json: AsJson = False) -> None:
    """Drop every index and derive it anew from the journal. The server has to be stopped.

    Answers are the same afterwards; it mends an index that `stateroom verify` complains of.
    """
    from stateroom.clock import SystemClock  # lazy: as below
    from stateroom.journal import rebuild as journal_rebuild  # lazy: `stateroom --help` must not pay for SQLite

    settings = _settings(data, config)
    with _shown("rebuilding") as steps:
        counts = journal_rebuild.rebuild(Path(settings.data), settings.durability, SystemClock(), steps.show)
    if as_json:
        show_json(counts)
        return
    entries = counts.pop("entries")
    say(f"The indexes of {settings.data} are made anew from {entries:,} entries.", style="green")
    say(", ".join(f"{table} {count:,}" for table, count in counts.items()), style="dim")


class _Steps:
    """How far a long command is, on standard error."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._progress = Progress()

    def show(self, what: str, done: int, total: int) -> None:
        how_far = f": {done:,} of {total:,}" if total else f": {done:,}" if done else ""
        self._progress.show(f"{self._doing} {what}{how_far}")

    def clear(self) -> None:
        self._progress.clear()


@contextmanager
def _shown(doing: str) -> Iterator[_Steps]:
    """Shows the steps of its block, and lets only CommandFailed out."""
    steps = _Steps(doing)
    try:
        with data_directory_failures():
            yield steps
    finally:
        steps.clear()


def _settings(data: str | None, config: Path | None) -> Settings:
    return load_settings(config, os.environ, {"data": data})


def _tell(report: Report, as_json: bool, well: str, ill: str = "") -> None:
    """Show what was found; exit code 1 when there was anything."""
    if as_json:
        show_json(report)
    else:
        _tell_in_words(report, well, ill)
    if not report.ok:
        raise typer.Exit(ERROR)


def _tell_in_words(report: Report, well: str, ill: str) -> None:
    mark = "✗ " if is_terminal() else ""
    for finding in report.findings:
        say(f"{mark}{finding.part}: ", style="red", end="")
        say(f"{safe(finding.where)}: {safe(finding.problem)}")
        say(f"  → {safe(finding.advice)}", style="yellow")
    for part, count in report.untold.items():
        say(f"{mark}{part}: {count:,} more", style="red")
    for note in report.notes:
        say(safe(note), style="dim")
    say(f"{safe(report.data)}: " + ", ".join(f"{what} {count:,}" for what, count in report.counts.items()), style="dim")
    if report.ok:
        say(safe(well), style="bold green")
    else:
        said = ", ".join(f"{part} {count:,}" for part, count in sorted(report.found().items()))
        say(f"Damaged: {said}. {safe(ill)}".rstrip(), style="bold red")
