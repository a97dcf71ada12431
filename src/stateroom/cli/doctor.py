"""`stateroom doctor`: starts each part for real and says what works, what does not, and how to mend it.

The examinations are in examine.py; this file runs them one after the other and shows what they found.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import textwrap
import time
from typing import Annotated

import typer

from stateroom.cli.configuration import BadSetting, Loaded, load
from stateroom.cli.examine import Finding, examinations
from stateroom.cli.failure import ERROR
from stateroom.cli.serve import BackendKeyEnv, Backends, Config, Data, Host, Port, Progress
from stateroom.cli.terminal import is_terminal, safe, say, show_json

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failed": ("✗", "red"), "skipped": ("–", "dim")}
_WIDTH = 16


def doctor(
    host: Host = None,
    port: Port = None,
    data: Data = None,
    backend: Backends = None,
    backend_key_env: BackendKeyEnv = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Start each part, say what works, what does not and how to mend it.

    It takes the options, the environment and the file that `stateroom serve`
    would take. Exit code 1: something that the server needs does not work.
    """
    overrides = {"host": host, "port": port, "data": data, "backends": backend, "backend_key_env": backend_key_env}
    logging.getLogger("stateroom").addHandler(logging.NullHandler())  # the findings say it better
    findings: list[Finding] = []
    try:
        loaded = load(config, os.environ, overrides)
    except BadSetting as mistake:
        remedy = "Every setting is described in docs/reference/settings.md."
        findings.append(Finding("settings", "failed", mistake.message, remedy))
        _show(findings[0], as_json)
    else:
        findings = _examine(loaded, as_json)
    failed = sum(finding.state == "failed" for finding in findings)
    if as_json:
        show_json({"ok": not failed, "findings": findings})
    elif failed:
        say(f"\nTo be mended: {failed} of {len(findings)}.", style="bold red")
    else:
        say("\nEverything that the server needs works.", style="bold green")
    raise typer.Exit(ERROR if failed else 0)


def _examine(loaded: Loaded, as_json: bool) -> list[Finding]:
    findings = []
    progress = Progress()
    for part, examine in examinations(loaded, progress.show):
        if is_terminal(sys.stderr):
            progress.show(f"{part} …")
        began = time.monotonic()
        finding = examine()
        progress.clear()
        finding.part, finding.seconds = part, round(time.monotonic() - began, 3)
        _show(finding, as_json)
        findings.append(finding)
    return findings


def _show(finding: Finding, as_json: bool) -> None:
    if as_json:
        return
    mark, colour = _MARKS[finding.state]
    say(f"{mark} ", style=colour, end="")
    say(f"{finding.part:<{_WIDTH}} ", style="bold", end="")
    indent = " " * (_WIDTH + 3)
    say(f"\n{indent}".join(_wrapped(safe(finding.detail), len(indent))))
    if finding.remedy:
        say(f"{indent}→ " + f"\n{indent}  ".join(_wrapped(safe(finding.remedy), len(indent) + 2)), style=colour)
    sys.stdout.flush()


def _wrapped(text: str, indent: int) -> list[str]:
    """The lines of a text, none of them wider than the terminal."""
    width = max(20, shutil.get_terminal_size().columns - indent) if is_terminal() else 10_000
    lines = text.splitlines()
    return [part for line in lines for part in textwrap.wrap(line, width, break_on_hyphens=False)] or [""]
