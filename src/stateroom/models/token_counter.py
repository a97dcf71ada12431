"""Counting the tokens of a chat request by whatever endpoint a server has for it. Which one is found out once.

llama.cpp counts a chat request as it is; vLLM's /tokenize takes one, too. An older llama.cpp applies its template to
the messages and tokenizes the text that comes of it. Servers that can do none of it are not asked again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from yarl import URL

from stateroom.errors import BackendError, BackendRejected

INCONCLUSIVE_MAX: Final = 3
"""Counts that no endpoint gave, although one might with another request, before the server counts as unable."""

_ABSENT: Final = frozenset({404, 405})
_IMAGE: Final = b'"data:image/'

Ask = Callable[[str, URL, bytes | None], Awaitable[Any]]


class TokenCounter:
    """What is known of one server's way to count."""

    def __init__(self, ask: Ask, base: str) -> None:
        self._ask = ask
        root = base.rstrip("/")
        self._input_tokens = URL(f"{root}/chat/completions/input_tokens")
        self._tokenize = URL(f"{root.removesuffix('/v1')}/tokenize")
        self._template = URL(f"{root.removesuffix('/v1')}/apply-template")
        self._ways: list[Callable[[bytes], Awaitable[int | None]]] = [
            self._by_request,
            self._by_chat_tokenizer,
            self._by_template,
        ]
        self._settled = False
        self._inconclusive = 0

    async def count(self, body: bytes) -> int | None:
        """Input tokens of a chat request; None when the server cannot say."""
        absent = 0
        for way in list(self._ways):
            try:
                count = await way(body)
            except BackendError as error:
                if _is_absent(error):
                    absent += 1
                    continue
                if not isinstance(error, BackendRejected):
                    return None  # it is not there or too busy: that says nothing of what it can do
                continue
            if count is not None:
                self._ways, self._settled = [way], True
                return count
            absent += 1
        if not self._settled:
            self._inconclusive += 1
            if absent == len(self._ways) or self._inconclusive >= INCONCLUSIVE_MAX:
                self._ways, self._settled = [], True
        return None

    async def _by_request(self, body: bytes) -> int | None:
        return _positive(await self._ask("POST", self._input_tokens, body), "input_tokens")

    async def _by_chat_tokenizer(self, body: bytes) -> int | None:
        return _positive(await self._ask("POST", self._tokenize, body), "count")

    async def _by_template(self, body: bytes) -> int | None:
        if _IMAGE in body:
            raise BackendRejected("The template's text stands for images and does not count them.")
        held = await self._ask("POST", self._template, body)
        prompt = held.get("prompt") if isinstance(held, dict) else None
        if not isinstance(prompt, str):
            return None
        text = msgspec.json.encode({"content": prompt, "add_special": True, "parse_special": True})
        held = await self._ask("POST", self._tokenize, text)
        tokens = held.get("tokens") if isinstance(held, dict) else None
        return len(tokens) if isinstance(tokens, list) and tokens else None


def _is_absent(error: BackendError) -> bool:
    return error.code == "backend_misconfigured" or (isinstance(error, BackendRejected) and error.status in _ABSENT)


def _positive(held: Any, field: str) -> int | None:
    count = held.get(field) if isinstance(held, dict) else None
    return count if isinstance(count, int) and count > 0 else None
