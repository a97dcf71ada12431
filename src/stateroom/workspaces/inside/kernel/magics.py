"""`!command`, `%pip` and the few other lines that notebooks allow and Python does not."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys

HOOK = "__stateroom_magic__"
"""The builtin that such a line becomes a call of."""
_LINES_MAX = 500
_KNOWN = "!command, %pip, %cd, %pwd, %%bash, %%writefile"


class UsageError(Exception):
    """A line that only some notebooks understand."""

    __module__ = "builtins"  # so that tracebacks name it without ours


def parse(code: str, filename: str) -> ast.Module:
    """Raises SyntaxError as Python would, for what is neither Python nor a magic."""
    if code.lstrip().startswith("%%"):
        first, _, rest = code.lstrip().partition("\n")
        return ast.parse(f"{HOOK}({first!r}, {rest!r})", filename)
    lines = code.split("\n")
    for _ in range(_LINES_MAX):
        try:
            return ast.parse("\n".join(lines), filename)
        except SyntaxError as error:
            at = (error.lineno or 0) - 1
            line = lines[at].lstrip() if 0 <= at < len(lines) else ""
            if not (line.startswith("!") or (line.startswith("%") and line[1:2].isalpha())):
                raise
            lines[at] = f"{lines[at][: len(lines[at]) - len(line)]}{HOOK}({line.rstrip()!r})"
    raise SyntaxError("too many lines that are no Python")


def magic(line: str, body: str = "") -> None:
    """Carries such a line out."""
    if line.startswith("!"):
        _shell(line[1:])
        return
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if word == "%pip":
        _pip(rest)
    elif word == "%cd":
        os.chdir(os.path.expanduser(rest or "~"))
        print(os.getcwd())
    elif word == "%pwd":
        print(os.getcwd())
    elif word == "%matplotlib":
        pass  # figures are shown anyway
    elif word in ("%%bash", "%%sh"):
        _shell(body)
    elif word == "%%writefile" and rest:
        with open(rest, "w", encoding="utf-8") as file:
            file.write(body)
        print("Wrote " + rest)
    else:
        raise UsageError(f"{word} is not there: this is plain Python, with {_KNOWN}.")


def _shell(command: str) -> None:
    sys.stdout.flush()
    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
    code = subprocess.call([shell, "-c", command], stdin=subprocess.DEVNULL)
    if code:
        print(f"[exit code {code}]")


def _pip(arguments: str) -> None:
    sys.stdout.flush()
    environment = dict(os.environ, PIP_BREAK_SYSTEM_PACKAGES="1", PIP_NO_INPUT="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    shell = f"exec {_quoted(sys.executable)} -m pip {arguments}"
    code = subprocess.call(["/bin/sh", "-c", shell], stdin=subprocess.DEVNULL, env=environment)
    if code:
        print(f"[exit code {code}]")
    import site  # only now: where a user's packages go may not have been there at the start

    user = site.getusersitepackages()
    if os.path.isdir(user) and user not in sys.path:
        sys.path.append(user)
    importlib.invalidate_caches()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
