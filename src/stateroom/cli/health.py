"""`stateroom health`: asks a running server whether it serves. For health checks where no other client is at hand."""

from __future__ import annotations

import os
from typing import Annotated
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import typer

from stateroom.cli.configuration import load_settings
from stateroom.cli.failure import CommandFailed
from stateroom.cli.serve import Config, Host, Port
from stateroom.cli.terminal import say
from stateroom.reasons import reason

SECONDS = 2.0
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}  # noqa: S104  these are looked for, not bound
"""Who listens everywhere is asked here."""


def health(
    host: Host = None,
    port: Port = None,
    config: Config = None,
    ready: Annotated[bool, typer.Option(help="Ask whether it takes new work, not only whether it lives.")] = False,
) -> None:
    """Ask the server of these settings whether it serves. Exit code 1: it does not."""
    settings = load_settings(config, os.environ, {"host": host, "port": port})
    where = ANY_ADDRESS.get(settings.host, settings.host)
    if ":" in where and not where.startswith("["):
        where = f"[{where}]"
    url = f"http://{where}:{settings.port}/{'ready' if ready else 'health'}"
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=SECONDS) as answer:
            answer.read(1_000)
    except HTTPError as error:
        raise CommandFailed(f"{url} answers {error.code}.", remedy="See the server's log.") from None
    except (URLError, OSError) as error:
        cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, OSError) else error
        remedy = "Is the server up, and is it this port?"
        raise CommandFailed(f"{url} does not answer: {reason(cause)}.", remedy=remedy) from None
    say(f"{url} answers")
