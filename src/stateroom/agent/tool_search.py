"""Finding tools by what they do: deferred ones are ranked by the words that they share with what is looked for. Pure.

The ranking is BM25 over names, descriptions and the names of parameters (Robertson and Zaragoza, The Probabilistic
Relevance Framework, 2009), with names counted three times. The same query finds the same tools every time.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

FOUND: Final = 8
FOUND_MAX: Final = 64
QUERY_MAX: Final = 2_000
"""Characters of a query that are looked at."""
_K1: Final = 1.2
_B: Final = 0.75
_NAMES: Final = 3
_WORD: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|[^\W\d_a-zA-Z]+")


class Searchable(Protocol):
    """A tool that can be found."""

    @property
    def function(self) -> Any: ...

    @property
    def declaration(self) -> Mapping[str, Any]: ...


def found_tools(tools: Sequence[Searchable], query: str, limit: int | None = None) -> list[dict[str, Any]]:
    """The declarations of the tools that fit best, the best first; those of one MCP server or namespace together."""
    wanted = min(max(1, limit or FOUND), FOUND_MAX)
    return _grouped([tools[position].declaration for position in _ranked(tools, str(query)[:QUERY_MAX])[:wanted]])


def _ranked(tools: Sequence[Searchable], query: str) -> list[int]:
    texts = [_words_of(tool) for tool in tools]
    frequency = Counter(word for words in texts for word in words)
    average = sum(words.total() for words in texts) / max(1, len(texts))
    asked = set(_words(query))
    scores = []
    for position, words in enumerate(texts):
        score = 0.0
        length = _K1 * (1 - _B + _B * words.total() / max(1.0, average))
        for word in asked:
            if (count := words[word]) > 0:
                rarity = math.log(1 + (len(texts) - frequency[word] + 0.5) / (frequency[word] + 0.5))
                score += rarity * count * (_K1 + 1) / (count + length)
        if score > 0:
            scores.append((-score, position))
    return [position for _, position in sorted(scores)]


def _words_of(tool: Searchable) -> Counter[str]:
    function = tool.function
    words = Counter({word: count * _NAMES for word, count in Counter(_words(function.name)).items()})
    words.update(_words(function.description or ""))
    properties = (function.parameters or {}).get("properties")
    if isinstance(properties, Mapping):
        for name in properties:
            words.update(_words(str(name)))
    return words


def _words(text: str) -> list[str]:
    """The words of a text, in lower case and without the endings of plurals: `listFiles` is `list`, `file`."""
    return [_stem(word.lower()) for word in _WORD.findall(text)]


def _stem(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _grouped(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    grouped: dict[tuple[str, str], dict[str, Any]] = {}
    for position, declaration in enumerate(found):
        kind = declaration["type"]
        if kind == "mcp":
            group = grouped.setdefault((kind, declaration["server_label"]), {**declaration, "allowed_tools": []})
            group["allowed_tools"].extend(declaration["allowed_tools"])
        elif kind == "namespace":
            group = grouped.setdefault((kind, declaration["name"]), {**declaration, "tools": []})
            group["tools"].extend(declaration["tools"])
        else:
            grouped[kind, str(position)] = dict(declaration)
    return list(grouped.values())
