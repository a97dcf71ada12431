"""`stateroom workspace`: look into the containers of a running server, and work in them."""

from __future__ import annotations

import posixpath
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias

import typer

from stateroom import ids
from stateroom.cli.client import DEFAULT_URL, AsJson, Client, Url, segment
from stateroom.cli.failure import ERROR, CommandFailed
from stateroom.cli.saving import save_download
from stateroom.cli.terminal import is_terminal, moment, safe, say, show_json, show_table

Id: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="A container's id, cntr_…")]
Commit: TypeAlias = Annotated[str, typer.Option("--commit", metavar="ID", help="As of this commit, wsc_…")]

MOUNT: Final = "/mnt/data/"
HOME: Final = "/workspace"
"""Where commands begin."""
_MOVES: Final = re.compile(r"(?:^|[\s;&|({])(?:cd|pushd|popd)(?:$|[\s;&|)}])")
"""A line that may end in another directory than it began in."""
_LEAVE: Final = re.compile(r"exit(?:\s+(\d+))?\s*;?")
_STYLES: Final = {"added": "green", "removed": "red", "changed": "yellow"}


def commands() -> typer.Typer:
    group = typer.Typer(no_args_is_help=True, help="Look into containers, and work in them.")
    group.command("list")(list_containers)
    group.command("ls")(list_files)
    group.command("cat")(show_file)
    group.command("log")(list_commits)
    group.command("diff")(show_diff)
    group.command("export")(export_files)
    group.command("shell")(shell)
    return group


def list_containers(
    name: Annotated[str, typer.Option(help="Only those of this name.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="How many; newest first.")] = 20,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List the containers, newest first."""
    found = list(Client(url).pages("/containers", order="desc", limit=limit, query={"name": name}))
    if as_json:
        show_json(found)
        return
    short = is_terminal()
    rows = ((each["id"], moment(each.get("last_active_at"), short=short), each["name"]) for each in found)
    show_table(("id", "last used", "name"), rows, empty="No containers yet.")


def list_files(
    identifier: Id,
    path: Annotated[str, typer.Argument(metavar="PATH", help="Only this file, or what is in this directory.")] = "",
    commit: Commit = "",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List the files of a container, by their paths."""
    within = _typed(path)
    found = sorted(
        (each for each in _files(Client(url), identifier, commit) if _is_in(_within(each["path"]), within)),
        key=lambda each: str(each["path"]),
    )
    if as_json:
        show_json(found)
        return
    short = is_terminal()
    rows = (
        (f"{each['bytes']:,}", moment(each.get("created_at"), short=short), each["source"], _within(each["path"]))
        for each in found
    )
    show_table(("bytes", "written", "by", "path"), rows, empty="No files.")


def show_file(
    identifier: Id,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file in the container.")],
    commit: Commit = "",
    url: Url = DEFAULT_URL,
) -> None:
    """Write a file of a container to standard output, as it is."""
    client = Client(url)
    wanted = MOUNT + _typed(path)
    file = next((each for each in _files(client, identifier, commit) if each["path"] == wanted), None)
    if file is None:
        raise CommandFailed(f"There is no file {path!r} in {identifier}.")
    target = f"/containers/{segment(identifier)}/files/{segment(file['id'])}/content"
    client.download(target, sys.stdout.buffer, query={"commit": commit})
    sys.stdout.buffer.flush()


def list_commits(
    identifier: Id,
    limit: Annotated[int, typer.Option(min=1, help="How many; newest first.")] = 20,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List what was committed of a container, newest first."""
    found = list(Client(url).pages(f"/containers/{segment(identifier)}/commits", order="desc", limit=limit))
    if as_json:
        show_json(found)
        return
    short = is_terminal()
    rows = (
        (
            each["id"],
            moment(each["created_at"], short=short),
            f"{each['files']:,}",
            f"{each['bytes']:,}",
            each["response_id"] or each["reason"],
        )
        for each in found
    )
    show_table(("id", "when", "files", "bytes", "by"), rows, empty="Nothing was committed yet.")


def show_diff(
    identifier: Id,
    commit: Annotated[str, typer.Argument(metavar="COMMIT", help="A commit, wsc_…; the latest when absent.")] = "",
    base: Annotated[
        str, typer.Option("--from", metavar="ID", help="The other commit; the one before when absent.")
    ] = "",
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show what a commit has changed: paths, and the lines of small texts."""
    client, place = Client(url), f"/containers/{segment(identifier)}/commits"
    if not commit:
        latest = next(client.pages(place, order="desc", limit=1), None)
        if latest is None:
            raise CommandFailed(f"Nothing was committed of {identifier} yet.")
        commit = latest["id"]
    diff = client.call("GET", f"{place}/{segment(commit)}/diff", query={"from": base, "text": "true"})
    if as_json:
        show_json(diff)
        return
    say(f"{diff['from'] or 'nothing'} → {diff['to']}", style="dim", err=True)
    for change in diff["changes"]:
        _show_change(change)
    if diff["truncated"]:
        say("More has changed than is shown.", style="yellow", err=True)


def export_files(
    identifier: Id,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write it, - for standard output; else ID.tar."),
    ] = None,
    commit: Commit = "",
    url: Url = DEFAULT_URL,
) -> None:
    """Write all files of a container into a tar archive."""
    place, query = f"/containers/{segment(identifier)}/archive", {"commit": commit}
    if output == Path("-"):
        Client(url).download(place, sys.stdout.buffer, query=query)
        sys.stdout.buffer.flush()
        return
    save_download(Client(url), place, output or Path(f"{identifier}.tar"), query=query)


def shell(
    identifier: Id,
    command: Annotated[str, typer.Option("--command", "-c", help="Carry out this one, and end as it ends.")] = "",
    url: Url = DEFAULT_URL,
) -> None:
    """Carry out commands in a container, one line after the other. Ctrl-C ends a command, Ctrl-D or `exit` the shell.

    Each line has a shell of its own: files, directories and `cd` stay, variables do not.
    """
    session = _Shell(Client(url), identifier)
    if command:
        raise typer.Exit(session.run(command))
    while (line := session.read()) is not None:
        if leave := _LEAVE.fullmatch(line.strip()):
            raise typer.Exit(int(leave.group(1) or 0) % 256)
        if line.strip():
            session.take(line)


class _Shell:
    """Lines, and where they are carried out."""

    def __init__(self, client: Client, identifier: str) -> None:
        self._client = client
        self._path = f"/containers/{segment(identifier)}"
        self._folder = HOME
        self._mark = f"\0{ids.new_key()}"
        """What parts the output of a line from the directory in which it ended."""
        client.call("GET", self._path)

    def read(self) -> str | None:
        """A line; None: there is no more."""
        if not is_terminal(sys.stdin):
            line = sys.stdin.readline()
            return line.rstrip("\n") if line else None
        import readline  # noqa: F401  # lazy: gives input() its history and editing

        try:
            return input(f"{safe(self._folder)}$ ")
        except EOFError:
            say()
            return None
        except KeyboardInterrupt:
            say()
            return ""

    def take(self, line: str) -> None:
        """Carry a line out. A refusal ends the line, not the shell."""
        try:
            code = self.run(line)
        except KeyboardInterrupt:
            say()
            return
        except CommandFailed as failure:
            say(f"error: {safe(failure.message)}", style="red", err=True)
            return
        if code:
            say(f"exit code {code}", style="dim", err=True)

    def run(self, line: str) -> int:
        """Carry a command out; its exit code."""
        code, held = ERROR, ""
        for event in self._client.stream("POST", f"{self._path}/exec", {"command": self._command(line)}):
            if event["type"] != "container.exec.output":
                code = self._ended(event)
            elif event["stream"] == "stderr":
                say(safe(event["text"]), end="", err=True)
            else:
                shown, held = _parted(held + event["text"], self._mark)
                say(safe(shown), end="")
                sys.stdout.flush()
        if held.startswith(self._mark):
            self._folder = held.removeprefix(self._mark)
        else:
            say(safe(held), end="")
        return code

    def _command(self, line: str) -> str:
        """What is carried out for a line: as it is where that will do, since rules look at its text."""
        moves = bool(_MOVES.search(line))
        if self._folder == HOME and not moves:
            return line
        # A line that moves is to get out of a directory that is gone.
        enter = f"cd {shlex.quote(self._folder)} {'2>/dev/null;' if moves else '&&'} {{\n{line}\n}}"
        token = self._mark.removeprefix("\0")
        return f"{enter}; left=$?; printf '\\0%s%s' {token} \"$PWD\"; exit $left" if moves else enter

    def _ended(self, event: Any) -> int:
        if event["type"] == "error":
            raise CommandFailed(str(event.get("message")))
        if event["restarted"]:
            say("The sandbox had died and was started anew.", style="yellow", err=True)
        if event.get("breach"):
            say(f"Processes were ended: {safe(event['breach'])}.", style="yellow", err=True)
        if event["timed_out"]:
            say("It took too long and was ended.", style="yellow", err=True)
        for job in event["background"]:
            say(f"still running: {safe(job)}", style="dim", err=True)
        return ERROR if event["exit_code"] is None else int(event["exit_code"])


def _files(client: Client, identifier: str, commit: str) -> Iterator[Any]:
    return client.pages(f"/containers/{segment(identifier)}/files", query={"commit": commit})


def _typed(path: str) -> str:
    """The same of a path as somebody types it; '' for the workspace itself."""
    within = _within(posixpath.normpath(path) + "/").rstrip("/")
    return "" if within == "." else within


def _is_in(path: str, folder: str) -> bool:
    return not folder or path == folder or path.startswith(f"{folder}/")


def _parted(text: str, mark: str) -> tuple[str, str]:
    """What of an output can be shown, and the rest: the mark and what follows it, or what may be its beginning."""
    at = text.find(mark)
    if at < 0:
        at = next((len(text) - size for size in range(len(mark) - 1, 0, -1) if text.endswith(mark[:size])), len(text))
    return text[:at], text[at:]


def _within(path: str) -> str:
    """The path without what stands for the workspace."""
    return path.removeprefix(MOUNT).removeprefix(f"{HOME}/")


def _show_change(change: Any) -> None:
    path = _within(change["path"])
    sizes = [f"{size:,}" for size in (change["bytes_before"], change["bytes_after"]) if size is not None]
    modes = [mode for mode in (change["mode_before"], change["mode_after"]) if mode is not None]
    shown = [safe(path), " → ".join(dict.fromkeys(sizes)) if change["kind"] == "file" else change["kind"]]
    if len(set(modes)) > 1:
        shown.append(f"mode {' → '.join(modes)}")
    say(f"{change['change']:<8} ", style=_STYLES.get(change["change"], ""), end="")
    say("  ".join(shown))
    for line in (change["text"] or "").splitlines():
        style = "green" if line.startswith("+") else "red" if line.startswith("-") else "dim"
        say(f"    {safe(line)}", style=style)
