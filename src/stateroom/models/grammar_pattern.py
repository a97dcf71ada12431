"""Regular expressions cut down to what every grammar engine understands, or refused. Pure.

Engines ignore what they do not know, and some never return from what contradicts itself, such as `a{2,1}`: only what
was read and understood here goes through, with classes such as `\\d` spelt out and an end to every repetition.
"""

from __future__ import annotations

import re
from typing import Final

REPEATS_LIMIT: Final = 1_000
"""How often something may be repeated at most, repetitions inside of repetitions multiplied."""

_CLASSES: Final = {"d": "0-9", "w": "A-Za-z0-9_", "s": r" \t\n\r"}
_TOKEN: Final = re.compile(
    r"""(?P<set>\[\^?(?:[^\]\[\\^]|\\[dwsnrt\\\]\[^\-/.$*+?(){}|])+\])
    |(?P<open>\((?:\?:)?(?!\?))
    |(?P<close>\))
    |(?P<or>\|)
    |(?P<repeat>(?:[*+?]|\{(?P<least>\d{1,4})(?P<comma>,(?P<most>\d{1,4})?)?\})\??)
    |(?P<atom>\\[dwsDWSnrt\\\]\[^\-/.$*+?(){}|]|[^\\()\[\]{}|*+?^$])""",
    re.VERBOSE,
)


def simple_pattern(pattern: str, most: int = REPEATS_LIMIT) -> str | None:
    """The pattern for a whole string, `most` times at most where it sets no end; None when it is not understood.

    A pattern that may be found anywhere in a string becomes one for the whole of it, which fits as well.
    """
    inner = pattern.removeprefix("^")
    if inner.endswith("$") and not inner.endswith("\\$"):
        inner = inner[:-1]
    read = _read(inner, min(most, REPEATS_LIMIT))
    return None if read is None else f"^{f'({read})' if '|' in read else read}$"


def _read(pattern: str, most: int) -> str | None:
    out: list[str] = []
    sizes = [1]
    """Of the innermost open group: the most that anything in it repeats."""
    last = 0
    """The same for what came last; 0 when nothing came that can be repeated."""
    begun = False
    at = 0
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if token is None:
            return None
        at = token.end()
        kind = token.lastgroup
        if token["open"]:
            sizes.append(1)
            out.append("(")
            last, begun = 0, False
        elif token["close"] or token["or"]:
            if not begun or (token["close"] and len(sizes) == 1):
                return None
            out.append(token[0])
            last, begun = (sizes.pop(), True) if token["close"] else (0, False)
        elif token["repeat"]:
            bounds = _repeat(token, most)
            if not last or bounds is None or last * bounds[1] > REPEATS_LIMIT:
                return None
            out.append(f"{{{bounds[0]},{bounds[1]}}}")
            sizes[-1] = max(sizes[-1], last * bounds[1])
            last = 0
        else:
            out.append(_spelt(token[0], is_set=kind == "set"))
            last, begun = 1, True
        sizes[-1] = max(sizes[-1], last)
    return "".join(out) if begun and len(sizes) == 1 else None


def _repeat(token: re.Match[str], most: int) -> tuple[int, int] | None:
    sign = token["repeat"][0]
    if sign != "{":
        return {"*": (0, most), "+": (1, most), "?": (0, 1)}[sign]
    least = int(token["least"])
    end = int(token["most"]) if token["most"] else max(least, most) if token["comma"] else least
    return (least, end) if least <= end and end > 0 else None


def _spelt(atom: str, *, is_set: bool) -> str:
    if is_set:
        return re.sub(r"\\([dws/])", lambda found: _CLASSES.get(found[1], found[1]), atom)
    if atom[0] == "\\" and atom[1].lower() in _CLASSES:
        return f"[{'^' if atom[1].isupper() else ''}{_CLASSES[atom[1].lower()]}]"
    return atom[1:] if atom in (r"\/", r"\-") else atom
