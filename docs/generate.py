"""Writes docs/reference/settings.md, limits.md, cli.md and api.md from the source; a test holds the pages against it.

The other way round, the list of error codes in the OpenAPI document is made from docs/reference/extensions.md.

python docs/generate.py
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from stateroom.cli.main import program
from stateroom.telemetry.exposition import METRICS
from stateroom.wire.openapi.document import surfaces

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src/stateroom/settings.py"

SETTINGS_HEAD = """# Settings

From the command line, the environment, a file, or the defaults, in this order. The file is `stateroom.toml` in the
working directory, or what `--config` names. Every setting is also an environment variable: `STATEROOM_` and its name in
capitals, two underscores between a section and its key (`STATEROOM_LIMITS__RUNS=64`). `STATEROOM_BACKENDS` takes base
URLs separated by commas, `STATEROOM_BACKEND_KEY_ENV` the name of the variable that holds their key, `STATEROOM_CONFIG`
the path of the file.

A name that is not known, in the file or among the variables, is an error: a misspelt setting must not be one that does
nothing. `stateroom doctor` says where each setting came from.

This page is made from the source by `docs/generate.py`.
"""

LIMITS_HEAD = """# Limits

What callers may ask, and what that may take, is bounded; each bound is a setting in the section `[limits]`. A request
that passes one is refused with a 400, 413 or 429 (see [error codes](extensions.md#error-codes)). Some do other things:
`steps` and `output_bytes` end an answer as `incomplete`, `runs` has further ones wait, `cached_context_bytes` bounds a
cache.

This page is made from the source by `docs/generate.py`.
"""

CLI_HEAD = """# Command line

`stateroom COMMAND --help` says the same. Commands that talk to a server take `--url` or `STATEROOM_URL`, and send
`STATEROOM_API_KEY`, if it is set, as the key. Tables and colours are for terminals; elsewhere lists are lines of
columns with tabs in between. `NO_COLOR` is heeded.

This page is made from the source by `docs/generate.py`.
"""

API_HEAD = """# API

What the server answers to, as in the document that it gives at `/openapi.json` and shows at `/docs`. A star marks what
OpenAI's API does not have; see [extensions](extensions.md), also for the parameters that are honoured, refused or
ignored. `/v1/responses` also speaks [WebSocket](../how-to/websocket.md).

This page is made from the source by `docs/generate.py`.
"""

CODES_HEAD = '''"""The stable error codes by what they are about, with their HTTP status.

Made by docs/generate.py from docs/reference/extensions.md: edit the table there.
"""

from __future__ import annotations

from typing import Final

CODES: Final[dict[str, dict[str, str]]] = {
'''

METRICS_HEAD = """# Metrics

`GET /metrics` shows these, in the text format of Prometheus or as OpenMetrics, whichever the scraper prefers. Where
there are access keys it needs one with the scope `admin`. [Observe](../how-to/observe.md) has queries over them.

A histogram `NAME` has the series `NAME_bucket`, `NAME_count` and `NAME_sum`; its buckets reach from 5 ms to 10 minutes,
those of the journal from 0.1 ms to 5 s. Beside these there are `process_resident_memory_bytes`,
`process_cpu_seconds_total`, `process_open_fds` and the like, on Linux.

Labels hold fixed words, routes as templates, the names of backends, and the model names that backends gave. Never a
project, a key, an id, or anything that a client wrote. A metric has at most 512 combinations of labels; what comes
beyond is counted under `other`.

Counters begin at 0 with each start of the server.

This page is made from the source by `docs/generate.py`.
"""

_SECTIONS = (
    "limits",
    "project",
    "projects",
    "retention",
    "embedded",
    "embeddings",
    "workspaces",
    "mcp",
    "policy",
    "telemetry",
)
_HOLDERS = ("Settings", "ProjectSettings")
"""Classes with sections in them, which have tables of their own."""

TITLES = {
    "Settings": "## The server",
    "BackendSettings": "## `[[backends]]`",
    "ProjectSettings": "## `[project]`",
    "RetentionSettings": "## `[project.retention]`",
    "EmbeddedSettings": "## `[embedded]`",
    "EmbeddingsSettings": "## `[embeddings]`",
    "WorkspaceSettings": "## `[workspaces]`",
    "McpSettings": "## `[mcp]`",
    "PolicyRule": "## `[[policy]]`",
    "TelemetrySettings": "## `[telemetry]`",
    "Limits": "## `[limits]`",
}


def pages() -> dict[str, str]:
    """The pages by their path below the repository's root."""
    classes = {node.name: node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.ClassDef)}
    order = (
        "Settings",
        "BackendSettings",
        "ProjectSettings",
        "RetentionSettings",
        "EmbeddedSettings",
        "EmbeddingsSettings",
        "WorkspaceSettings",
        "McpSettings",
        "PolicyRule",
        "TelemetrySettings",
    )
    sections = [f"{TITLES[name]}\n\n{_about(classes[name])}\n\n{_table(classes[name])}" for name in order]
    limits = "## `[limits]`\n\nSee [limits](limits.md)."
    return {
        "docs/reference/settings.md": "\n".join([SETTINGS_HEAD, *[f"{part}\n" for part in sections], limits, ""]),
        "docs/reference/limits.md": f"{LIMITS_HEAD}\n{_table(classes['Limits'])}\n",
        "docs/reference/api.md": f"{API_HEAD}\n{_operations()}",
        "src/stateroom/wire/openapi/codes.py": f"{CODES_HEAD}{_codes()}}}\n",
        "docs/reference/metrics.md": f"{METRICS_HEAD}\n{_metrics()}",
        "docs/reference/cli.md": f"{CLI_HEAD}\n" + "\n".join(_commands(get_command(program()), "stateroom")),
    }


def _metrics() -> str:
    rows = ["| metric | type | labels | |", "| --- | --- | --- | --- |"]
    for each in METRICS:
        name = f"{each.name}_total" if each.type == "counter" else each.name
        labels = ", ".join(f"`{label}`" for label in each.labels)
        rows.append(f"| `{name}` | {each.type} | {labels} | {each.help} |")
    return "\n".join([*rows, ""])


def _operations() -> str:
    sections = []
    for surface in surfaces():
        rows = ["| | | |", "| --- | --- | --- |"]
        for each in surface.operations:
            star = " \\*" if each.extension else ""
            rows.append(f"| `{each.method}` | `{each.path}` | {each.summary}{star} |")
        sections.append("\n".join([f"## {surface.name}", "", surface.about, "", *rows, ""]))
    return "\n".join(sections)


def _codes() -> str:
    """The error codes of the tables in the reference, as the entries of a dict."""
    page = (ROOT / "docs/reference/extensions.md").read_text()
    lines = []
    for section in page[page.index("## Error codes") :].split("\n### ")[1:]:
        lines.append(f'    "{section.splitlines()[0]}": {{')
        for row in re.findall(r"^\| (`.*?) \| ([^|]*) \|", section, re.MULTILINE):
            status = row[1] if re.fullmatch(r"[0-9, ]+", row[1]) else "4xx" if "4xx" in row[1] else ""
            lines += [f'        "{code}": "{status}",' for code in re.findall(r"`([a-z_0-9]+)`", row[0])]
        lines.append("    },")
    return "\n".join(lines) + "\n"


def _commands(command: Any, name: str) -> Iterator[str]:
    yield f"## `{name}`\n\n{_unwrapped(command.help or '')}\n"
    rows = [row for row in (_parameter(each) for each in command.params) if row]
    if rows:
        yield "\n".join(["| option or argument | |", "| --- | --- |", *rows]) + "\n"
    for child in getattr(command, "commands", {}).values():
        yield from _commands(child, f"{name} {child.name}")


def _parameter(parameter: Any) -> str:
    if parameter.name in ("help", "install_completion", "show_completion"):
        return ""
    is_option = parameter.param_type_name == "option"
    written = ", ".join(parameter.opts) if is_option else str(parameter.name).upper()
    about = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
    return f"| `{written}` | {about} |"


def _unwrapped(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.replace("\b", "").split("\n\n"))


def _about(node: ast.ClassDef) -> str:
    return ast.get_docstring(node) or ""


def _table(node: ast.ClassDef) -> str:
    rows = ["| key | default | |", "| --- | --- | --- |"]
    body = node.body
    for position, field in enumerate(body):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        following = body[position + 1] if position + 1 < len(body) else None
        about = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            about = " ".join(str(following.value.value).split()).replace("|", "\\|")
        if node.name in _HOLDERS and field.target.id in _SECTIONS:
            continue
        default = _plain(ast.unparse(field.value)) if field.value is not None else "required"
        choices = _choices(field.annotation)
        rows.append(f"| `{field.target.id}` | {default} | {' '.join(part for part in (choices, about) if part)} |")
    return "\n".join(rows)


def _plain(default: str) -> str:
    if set(default) <= set("0123456789_* ()") and default != "()":
        number = eval(default)  # digits and operators of our own source
        return f"`{number:_}`" if number > 9999 else f"`{number}`"
    return "none" if default in ("''", "()", "None") else f"`{_as_toml(default)}`"


def _as_toml(default: str) -> str:
    return {"True": "true", "False": "false"}.get(default, default.strip("'").removesuffix(".0"))


def _choices(annotation: ast.expr) -> str:
    text = ast.unparse(annotation)
    if not text.startswith("Literal["):
        return ""
    return " or ".join(f"`{word.strip()[1:-1]}`" for word in text[8:-1].split(",")) + "."


if __name__ == "__main__":
    for path, text in pages().items():
        (ROOT / path).write_text(text)
