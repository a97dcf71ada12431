"""How much a key and a project may use: requests and tokens a minute, and runs at the same time.

Buckets that fill steadily and hold one minute's worth. They live in this process's memory: a restart fills them, and
each server has its own. What a run cost in tokens is known at its end, so a bucket may be overdrawn by the runs that
were let in while it still held something; nothing more is let in until it has filled up again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import msgspec

from stateroom.clock import Clock
from stateroom.errors import TooMany

_SECONDS: Final = 60.0
_FORGET_AT: Final = 4_096
"""Accounts in memory before those that are full and idle are forgotten."""


class Allowance(msgspec.Struct, frozen=True):
    """What may be used; 0: as much as one likes."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    runs: int = 0

    @property
    def is_bound(self) -> bool:
        return bool(self.requests_per_minute or self.tokens_per_minute or self.runs)


_ANYTHING: Final = Allowance()


class Bucket:
    """Holds up to one minute's worth, and fills steadily."""

    __slots__ = ("_at", "_level", "size")

    def __init__(self, size: int, now: float) -> None:
        self.size = size
        self._level = float(size)
        self._at = now

    def level(self, now: float) -> float:
        """What it holds; below zero when overdrawn."""
        if now > self._at:
            self._level = min(float(self.size), self._level + (now - self._at) * self.size / _SECONDS)
            self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        self._level = self.level(now) - amount

    def seconds_until(self, amount: float, now: float) -> float:
        """How long until it holds so much."""
        return max(0.0, (amount - self.level(now)) * _SECONDS / self.size)


class Account:
    """What one key or one project has used."""

    __slots__ = ("allowance", "requests", "running", "tokens", "what")

    def __init__(self, what: str, allowance: Allowance, now: float) -> None:
        self.what = what
        self.allowance = allowance
        self.requests = Bucket(allowance.requests_per_minute, now) if allowance.requests_per_minute else None
        self.tokens = Bucket(allowance.tokens_per_minute, now) if allowance.tokens_per_minute else None
        self.running = 0

    def is_idle(self, now: float) -> bool:
        buckets = (self.requests, self.tokens)
        return not self.running and all(each is None or each.level(now) >= each.size for each in buckets)


class Rates:
    """The accounts of this process."""

    def __init__(
        self,
        clock: Clock,
        *,
        of_project: Callable[[str], Allowance] = lambda project: _ANYTHING,
        of_key: Callable[[str], Allowance | None] = lambda key_id: None,
    ) -> None:
        self._clock = clock
        self._of_project = of_project
        self._of_key = of_key
        self._accounts: dict[tuple[str, str], Account | None] = {}
        """By kind and name; None for those without any bound."""

    def ask(self, project: str, key_id: str) -> tuple[dict[str, str], TooMany | None]:
        """Count a request: headers that say how it stands, and a refusal when there were too many."""
        accounts = self._bound(project, key_id)
        if not accounts:
            return {}, None
        now = self._clock.monotonic()
        refusal = None
        for account in accounts:
            if account.requests is not None and account.requests.level(now) < 1.0:
                wait = account.requests.seconds_until(1.0, now)
                refusal = _refusal(f"{account.allowance.requests_per_minute} requests a minute", account.what, wait)
                break
        else:
            for account in accounts:
                if account.requests is not None:
                    account.requests.take(1.0, now)
        return _headers(accounts, now), refusal

    def begin(self, project: str, key_id: str) -> None:
        """Count a run that begins. Raises TooMany."""
        for account in self._bound(project, key_id):
            if account.allowance.runs and account.running >= account.allowance.runs:
                raise _refusal(f"{account.allowance.runs} runs at the same time", account.what, 1.0)
        self.check(project, key_id)
        self.resume(project, key_id)

    def check(self, project: str, key_id: str) -> None:
        """Whether there are tokens for what follows on a run that goes on and has its place. Raises TooMany."""
        now = self._clock.monotonic()
        for account in self._bound(project, key_id):
            if account.tokens is not None and account.tokens.level(now) <= 0.0:
                wait = account.tokens.seconds_until(1.0, now)
                raise _refusal(f"{account.allowance.tokens_per_minute} tokens a minute", account.what, wait)

    @contextmanager
    def begun(self, project: str, key_id: str) -> Iterator[None]:
        """As `begin`, and taken back when the block fails: the run was never started."""
        self.begin(project, key_id)
        try:
            yield
        except BaseException:
            self.end(project, key_id, 0)
            raise

    def resume(self, project: str, key_id: str) -> None:
        """Count a run that was let in before and goes on."""
        for account in self._bound(project, key_id):
            account.running += 1

    def end(self, project: str, key_id: str, tokens: int) -> None:
        """A run that was counted has ended and cost so many tokens."""
        for account in self._bound(project, key_id):
            account.running = max(0, account.running - 1)
        if tokens:
            self.charge(project, key_id, tokens)

    def charge(self, project: str, key_id: str, tokens: int) -> None:
        """Tokens that were used, for what is no run as well."""
        now = self._clock.monotonic()
        for account in self._bound(project, key_id):
            if account.tokens is not None:
                account.tokens.take(tokens, now)

    def runs_allowed(self, project: str, key_id: str) -> int:
        """How many runs may go on at the same time; 0: as many as one likes."""
        return min((each.allowance.runs for each in self._bound(project, key_id) if each.allowance.runs), default=0)

    def _bound(self, project: str, key_id: str) -> list[Account]:
        """The accounts that have any bound, the key's first."""
        accounts = []
        for kind, name in (("key", key_id), ("project", project)):
            if not name:
                continue
            try:
                account = self._accounts[kind, name]
            except KeyError:
                account = self._open(kind, name)
            if account is not None:
                accounts.append(account)
        return accounts

    def _open(self, kind: str, name: str) -> Account | None:
        now = self._clock.monotonic()
        if len(self._accounts) >= _FORGET_AT:
            self._accounts = {
                each: held for each, held in self._accounts.items() if held is not None and not held.is_idle(now)
            }
        allowance = self._of_key(name) if kind == "key" else self._of_project(name)
        account = None
        if allowance is not None and allowance.is_bound:
            what = "this key" if kind == "key" else "this project"
            account = Account(what, allowance, now)
        self._accounts[kind, name] = account
        return account


def _refusal(bound: str, what: str, wait: float) -> TooMany:
    message = f"Rate limit reached: {what} may have {bound}. Please try again in {_duration(wait)}."
    return TooMany(message, retry_after=math.ceil(wait), code="rate_limit_exceeded")


def _headers(accounts: list[Account], now: float) -> dict[str, str]:
    """How it stands with the tightest of them, in the words of OpenAI's API."""
    headers: dict[str, str] = {}
    for word in ("requests", "tokens"):
        buckets = [bucket for bucket in (getattr(account, word) for account in accounts) if bucket is not None]
        if buckets:
            tightest = min(buckets, key=lambda bucket: bucket.level(now))
            headers[f"x-ratelimit-limit-{word}"] = str(tightest.size)
            headers[f"x-ratelimit-remaining-{word}"] = str(max(0, int(tightest.level(now))))
            headers[f"x-ratelimit-reset-{word}"] = _duration(tightest.seconds_until(tightest.size, now))
    return headers


def _duration(seconds: float) -> str:
    """As OpenAI's API writes it: 12ms, 1.5s, 6m0s."""
    if seconds < 1.0:
        return f"{max(1, round(seconds * 1000))}ms" if seconds > 0 else "0s"
    if seconds < _SECONDS:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s"
