"""Writes docs/reference/settings.md, limits.md and cli.md from the source; a test holds the pages against it.

python docs/generate.py
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from stateroom.cli.main import program

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

TITLES = {
    "Settings": "## The server",
    "BackendSettings": "## `[[backends]]`",
    "EmbeddedSettings": "## `[embedded]`",
    "Limits": "## `[limits]`",
}


def pages() -> dict[str, str]:
    """The pages by their path below the repository's root."""
    classes = {node.name: node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.ClassDef)}
    order = ("Settings", "BackendSettings", "EmbeddedSettings")
    sections = [f"{TITLES[name]}\n\n{_about(classes[name])}\n\n{_table(classes[name])}" for name in order]
    limits = "## `[limits]`\n\nSee [limits](limits.md)."
    return {
        "docs/reference/settings.md": "\n".join([SETTINGS_HEAD, *[f"{part}\n" for part in sections], limits, ""]),
        "docs/reference/limits.md": f"{LIMITS_HEAD}\n{_table(classes['Limits'])}\n",
        "docs/reference/cli.md": f"{CLI_HEAD}\n" + "\n".join(_commands(get_command(program()), "stateroom")),
    }


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
        if field.target.id in ("limits", "embedded"):
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
