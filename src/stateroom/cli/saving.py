"""Saving what a server sends as a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from stateroom.cli.client import Client
from stateroom.cli.failure import CommandFailed
from stateroom.cli.terminal import safe, say


def save_download(client: Client, path: str, target: Path, *, query: Mapping[str, str] | None = None) -> None:
    """Write to a file beside the target first: what was cut off must not look whole. Raises CommandFailed."""
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            size = client.download(path, file, query=query)
        beside.replace(target)
    except OSError as error:
        raise CommandFailed(f"{target} cannot be written: {error.strerror}.") from None
    finally:
        with suppress(OSError):
            beside.unlink()
    say(f"{safe(str(target))}: {size:,} bytes", style="green")
