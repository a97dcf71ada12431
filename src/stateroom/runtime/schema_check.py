"""A JSON schema of a caller: how much of it there is, whether it is one, and whether a value fits.

It is also a program, for schemas with which that could take for ever: it reads `{"schema": ..., "text": ...}` from its
standard input and writes what is wrong, or nothing.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any, Final
from urllib.parse import unquote

import msgspec

_UNFORESEEN: Final = ("$dynamicRef", "$recursiveRef", "unevaluatedProperties", "unevaluatedItems")
"""Keywords with which the checks may double at every level."""
_PATTERN_PARTS: Final = 100
"""A regular expression counts as so many parts, and its states: it takes that much longer to read."""
_CLASS_STATES: Final = 2
_PROPERTY_STATES: Final = 16
"""States of a class of characters, and of one that Unicode defines; about."""
_READING_STATES: Final = 12
"""What it takes to read a class that Unicode defines, however often it is repeated."""
_STATES_MAX: Final = 1_000_000_000
_WEIGHT_MAX: Final = 1 << 60
"""Enough of a schema: definitions that name each other may double at every one, and so would our numbers' digits."""
_PATTERNS_MAX: Final = 65_536
"""Characters of all patterns of a schema; beyond it they are not looked at."""
_BACKTRACKS: Final = re.compile(r"\(\?[=!<>(]|\\[1-9kgGK]|[*+?}]\+")
"""Looking around and back, and the like: matching it can take a time that nobody can foretell."""
_UNICODE: Final = re.compile(r"\\[pPwWsSdD]")
_VERBOSE: Final = re.compile(r"\?[A-Za-z]*x")
"""Flags with which spaces and comments may stand inside of repetitions: what those come to is not seen here."""
_TOKEN: Final = re.compile(
    r"(?P<property>\\[pP](\{[^}]*\}?|.)?)|\\.?|(?P<set>\[\^?\]?(\\.|[^\]\\])*\]?)|(?P<times>\{(?P<low>\d++)?(?:,(?P<high>\d++)?)?\})|.",
    re.DOTALL,
)


MEMORY_BYTES: Final = 2 * 1024 * 1024 * 1024
"""Of the process that checks what could take for ever."""


class Weight(msgspec.Struct, frozen=True):
    """How much of a schema there is."""

    parts: int
    """Objects, lists and values in it; a definition counts wherever it is referred to."""
    recursive: bool
    """A definition stands inside itself, or may: checking a value can take a time that nobody can foretell."""


def weight_of(schema: Any) -> Weight:
    """Weigh a schema without unfolding it."""
    scale = _Scale(schema)
    try:
        parts = scale.weigh(schema)
    except RecursionError:
        return Weight(sys.maxsize, True)
    return Weight(parts, scale.recursive)


class _Scale:
    def __init__(self, root: Any) -> None:
        self.root = root
        self.recursive = False
        self._known: dict[int, int] = {}
        self._inside: set[int] = set()
        self._read = 0
        """Characters of all patterns so far."""

    def weigh(self, node: Any) -> int:
        if isinstance(node, list):
            return min(_WEIGHT_MAX, 1 + sum(map(self.weigh, node)))
        if not isinstance(node, dict):
            return 1
        key = id(node)
        known = self._known.get(key)
        if known is not None:
            return known
        if key in self._inside:
            self.recursive = True
            return 1
        self._inside.add(key)
        parts = 1 + sum(map(self.weigh, node.values())) + self._weigh_reference(node) + self._weigh_patterns(node)
        parts = min(_WEIGHT_MAX, parts)
        self._inside.discard(key)
        self._known[key] = parts
        return parts

    def _weigh_reference(self, node: dict[str, Any]) -> int:
        if any(name in node for name in _UNFORESEEN):
            self.recursive = True
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return 0
        found = _look_up(self.root, reference)
        if found is None:
            self.recursive = True  # by a name that is not followed here
            return 1
        return self.weigh(found)

    def _weigh_patterns(self, node: dict[str, Any]) -> int:
        by_pattern = node.get("patternProperties")
        patterns = [*(by_pattern if isinstance(by_pattern, dict) else ()), node.get("pattern")]
        parts = 0
        for pattern in patterns:
            if isinstance(pattern, str):
                self._read += len(pattern)
                states = states_of(pattern) if self._read <= _PATTERNS_MAX else _STATES_MAX
                parts += _PATTERN_PARTS + states
                self.recursive = self.recursive or bool(_BACKTRACKS.search(pattern))
        return parts


def states_of(pattern: str) -> int:
    """About how many states a regular expression has: repetitions multiply what stands before them."""
    groups = [0]
    last = 0
    for token in _TOKEN.finditer(pattern):
        text = token[0]
        if token["times"]:
            times = max(int((token[bound] or "0")[:7]) for bound in ("low", "high"))
            groups[-1] = min(_STATES_MAX, groups[-1] + last * max(0, times - 1))
            last = min(_STATES_MAX, last * max(1, times))
            continue
        if text in "*+?":
            continue
        if text == "(":
            if _VERBOSE.match(pattern, token.end()):
                return _STATES_MAX
            groups.append(0)
            continue
        if text == ")" and len(groups) > 1:
            last = groups.pop()
        elif token["set"]:
            last = _CLASS_STATES + _PROPERTY_STATES * (text.count("\\p") + text.count("\\P"))
        else:
            last = _PROPERTY_STATES if token["property"] else _CLASS_STATES if text == "." else 1
        groups[-1] += last
    return min(_STATES_MAX, sum(groups) + _READING_STATES * len(_UNICODE.findall(pattern)))


def _look_up(root: Any, reference: str) -> Any:
    """What a reference by path names; None when it is another kind of reference, or leads nowhere."""
    if not reference.startswith("#") or (len(reference) > 1 and reference[1] != "/"):
        return None
    found = root
    for step in unquote(reference[1:]).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and name.isascii() and int(name[:9]) < len(found):
            found = found[int(name[:9])]
        else:
            return None
    return found


def read_schema(schema: Any) -> tuple[Any, str]:
    """A validator, or None and what is wrong with the schema. References to elsewhere are never followed."""
    import jsonschema_rs  # lazy: compiled library, needed for structured output alone

    try:
        return jsonschema_rs.validator_for(schema, offline=True), ""
    except jsonschema_rs.ValidationError as error:
        return None, _told(error)
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        return None, str(error)[:300]


def problem_of(schema: Any, value: Any) -> str:
    """Where and how a value does not fit; '' when it does. Stops at the first problem."""
    import jsonschema_rs  # lazy: as above

    validator, problem = read_schema(schema)
    if validator is None:
        return f"at all: {problem}"
    try:
        validator.validate(value)
    except jsonschema_rs.ValidationError as error:
        return _told(error)
    except ValueError as error:
        return f"at all: {str(error)[:300]}"
    return ""


def _told(error: Any) -> str:
    """Where and how a value does not fit, in one line."""
    where = "/".join(str(step) for step in error.instance_path)
    return f"at /{where}: {error.message[:300]}"


def _bound_memory() -> None:
    try:
        import resource  # lazy: systems without it have no such bound
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def main() -> None:
    _bound_memory()
    asked = json.loads(sys.stdin.buffer.read())
    sys.stdout.buffer.write(problem_of(asked["schema"], json.loads(asked["text"])).encode())


if __name__ == "__main__":
    main()
