"""`stateroom serve`: settings in, a running server out, and the banner that tells how to use it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from stateroom.addresses import is_loopback
from stateroom.cli.client import DEFAULT_URL
from stateroom.cli.configuration import load_settings
from stateroom.cli.failure import DIRECTORY_IN_USE, USAGE, CommandFailed
from stateroom.cli.terminal import is_terminal, safe, say
from stateroom.errors import DirectoryInUse, StateroomError
from stateroom.journal.lock import lock_directory

if TYPE_CHECKING:
    from stateroom.serving import ServerInfo
    from stateroom.settings import Settings

QUIET_SECONDS = 1.0
"""Between two lines about the same thing."""

Host: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Address to listen on; any but a loopback one needs a key. (STATEROOM_HOST) Default: 127.0.0.1."),
]
Port: TypeAlias = Annotated[
    int | None, typer.Option(help="Port; 0 takes any free one. (STATEROOM_PORT) Default: 8000.")
]
Data: TypeAlias = Annotated[
    str | None, typer.Option(metavar="DIR", help="Data directory. (STATEROOM_DATA) Default: ./stateroom-data.")
]
Backends: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--backend", metavar="URL", help="A model server's base URL; may be repeated. (STATEROOM_BACKENDS)"),
]
BackendKeyEnv: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Variable that holds the backends' API key. (STATEROOM_BACKEND_KEY_ENV)"),
]
Config: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="TOML file. (STATEROOM_CONFIG) Default: ./stateroom.toml, if there."),
]


def serve(
    host: Host = None,
    port: Port = None,
    data: Data = None,
    backend: Backends = None,
    backend_key_env: BackendKeyEnv = None,
    config: Config = None,
) -> None:
    """Run the server. Without --backend it serves the embedded smoke-test model.

    Exit codes: 0 stopped as asked, 1 error, 2 wrong option or setting,
    3 the data directory is in use, 4 another server has taken it over.
    """
    overrides = {
        "host": host,
        "port": port,
        "data": data,
        "backends": backend,
        "backend_key_env": backend_key_env,
    }
    settings = load_settings(config, os.environ, overrides)
    refuse_open_bind(settings)
    raise typer.Exit(_run(settings))


def refuse_open_bind(settings: Settings) -> None:
    """Other machines reach this address: without a key that opens the server nobody could use it there."""
    if is_loopback(settings.host) or has_usable_key(Path(settings.data)):
        return
    raise CommandFailed(
        f"Stateroom does not listen on {settings.host}, where other machines reach it, without an access key.",
        remedy=f"Make one with `stateroom keys create --name NAME --data {settings.data}`, or listen on 127.0.0.1.",
        exit_code=USAGE,
    )


def has_usable_key(data: Path) -> bool:
    """Whether there is a key that opens the server. Makes no file. Raises CommandFailed."""
    from stateroom.access import keys as access_keys  # lazy: `stateroom --help` must not pay for SQLite

    path = data / access_keys.FILE
    if not path.is_file():
        return False
    try:
        with contextlib.closing(access_keys.open_keys(path)) as keys:
            return keys.is_usable()
    except StateroomError as error:
        raise CommandFailed(error.message) from None


def _run(settings: Settings) -> int:
    gc.set_threshold(100_000)  # what is loaded now stays, and looking through it takes a twentieth of the start
    from stateroom import serving  # lazy: `stateroom --help` must not pay for the server

    progress = Progress()
    progress.hold()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(serving.serve(settings, lambda info: _announce(info, progress), progress.show))
    except DirectoryInUse as error:
        progress.clear()
        raise _in_use(error) from None
    except StateroomError as error:
        progress.clear()
        raise CommandFailed(
            f"{error.message} ({error.code})", remedy="`stateroom doctor` looks at every part and says what to mend."
        ) from None
    except OSError as error:
        progress.clear()
        raise _system_failure(error, settings) from None
    except KeyboardInterrupt:
        return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    import uvloop  # lazy: only the server needs it

    return uvloop.new_event_loop


def _in_use(error: DirectoryInUse) -> CommandFailed:
    remedy = "Stop that server, or give this one a directory of its own with --data (and a port with --port)."
    return CommandFailed(error.message, remedy=remedy, exit_code=DIRECTORY_IN_USE)


def _refuse_directory_in_use(data: str) -> None:
    """A server that was started twice holds the port and the directory; the directory is what matters."""
    if not Path(data).is_dir():
        return
    try:
        lock_directory(Path(data)).release()
    except DirectoryInUse as error:
        raise _in_use(error) from None


def _system_failure(error: OSError, settings: Settings) -> CommandFailed:
    match error.errno:
        case errno.EADDRINUSE:
            _refuse_directory_in_use(settings.data)
            return CommandFailed(
                f"Port {settings.port} of {settings.host} is in use.",
                remedy="Stop whatever listens there, or choose another with --port (0 takes any free one).",
            )
        case errno.EADDRNOTAVAIL:
            return CommandFailed(f"{settings.host} is not an address of this machine.", exit_code=USAGE)
        case errno.EACCES | errno.EPERM if error.filename is None:
            return CommandFailed(f"Port {settings.port} needs rights that this user does not have.", exit_code=USAGE)
    if error.filename:
        is_file = error.errno in (errno.EEXIST, errno.ENOTDIR)
        return CommandFailed(
            f"{error.filename} cannot be used: {'it is no directory' if is_file else error.strerror}.",
            remedy="Mend it, or choose another data directory with --data.",
        )
    return CommandFailed(f"The system refused: {error.strerror or error}.")


class Progress:
    """What is being prepared: one line that changes on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._in_place = is_terminal(sys.stderr)
        self._open = False
        self._topic = ""
        self._at = float("-inf")
        self._holds = False
        self._held = ""

    def hold(self) -> None:
        """Keep what comes to itself until `settle`: the banner is to come first."""
        self._holds, self._in_place = True, False

    def show(self, text: str) -> None:
        if self._holds:
            self._held = text
            return
        if self._in_place:
            say(f"\r\x1b[K{safe(text)}", style="dim", end="", err=True)
            self._open = True
            return
        topic, now = text.split(":")[0], time.monotonic()
        if topic != self._topic or now - self._at >= QUIET_SECONDS:
            self._topic, self._at = topic, now
            say(safe(text), style="dim", err=True)

    def clear(self) -> None:
        """Take the changing line away."""
        if self._open:
            say("\r\x1b[K", end="", err=True)
            self._open = False

    def settle(self) -> None:
        """Show the last of what was held back, and what comes from now on."""
        self._holds = False
        if self._held:
            self.show(self._held)


def _announce(info: ServerInfo, progress: Progress) -> None:
    for line, style in banner(info):
        say(line, style=style)
    sys.stdout.flush()
    progress.settle()


def banner(info: ServerInfo) -> list[tuple[str, str]]:
    """The lines that a started server greets with, each with its style."""
    url = info.url.rstrip("/")
    url = url if url.endswith("/v1") else f"{url}/v1"
    kept = {
        "normal": 'normal: answers survive kill -9 ("full": power loss too)',
        "full": "full: answers survive kill -9 and power loss",
    }
    key = "sk-stateroom-…" if info.keyed else "unused"
    lines = [
        ("", ""),
        (f"  Stateroom {version('stateroom')} is ready.", "bold green"),
        ("", ""),
        (f"  URL         {url}", "bold"),
        (f"  data        {Path(info.data).resolve()}", ""),
        (f"  models      {_models(info.models)}", ""),
    ]
    if not info.models:
        lines.append(("              no model server has answered; `stateroom doctor` says why", "yellow"))
    if info.embedded:
        lines.append(("              a smoke-test model: small, quick to start, and often wrong;", "yellow"))
        lines.append(("              name a real model server with --backend http://host:9001/v1", "yellow"))
    if info.keyed:
        lines.append(("  keys        asked for; `stateroom keys create` makes one", ""))
    return [
        *lines,
        (f"  durability  {kept.get(info.durability, info.durability)}", ""),
        ("", ""),
        ("  From Python:", "dim"),
        ("      from openai import OpenAI", ""),
        (f'      client = OpenAI(base_url="{url}", api_key="{key}")', ""),
        ("  From anything else that speaks OpenAI's API:", "dim"),
        (f"      export OPENAI_BASE_URL={url} OPENAI_API_KEY={key}", ""),
        ("", ""),
        (f"  Talk to it: stateroom chat{_chat_url(url)}     Stop it: Ctrl-C", "dim"),
        ("", ""),
    ]


def _models(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown or "none yet"


def _chat_url(url: str) -> str:
    return "" if url == DEFAULT_URL else f" --url {url}"
