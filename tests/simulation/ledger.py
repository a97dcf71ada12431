"""What clients were told, and what they may therefore expect of every server that comes after the crash.

Nothing here asks the server anything. `now` is a counter that orders what was sent and what was acknowledged.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.simulation.client import Event

Deed = TypeVar("Deed")


@dataclass
class Response:
    """A response whose id a client knows."""

    id: str
    kind: str
    token: str
    """Stands in its input and output, and nowhere else."""
    text: str | None = None
    """What its last message must say when it is completed; None: checked otherwise."""
    streamed: bool = False
    """Whether its events are kept."""
    silent: bool = False
    """No model was asked: it has no output."""
    effects: bool = False
    """Whether it calls the probe tools."""
    cancel_asked: bool = False
    cancelled: bool = False
    """It was acknowledged as cancelled."""
    events: list[bytes] = field(default_factory=list)
    """The events seen, by number, from 0 without gaps."""
    final: Any = None
    """The whole object, once somebody was told that it has ended."""
    delete_asked: bool = False
    deleted: bool = False
    conversation: str = ""

    def see(self, event: Event) -> None:
        """Take in an event of its stream. Raises AssertionError when it is not the next, or not the one seen before."""
        if event.number < len(self.events):
            assert self.events[event.number] == event.raw, f"event {event.number} of {self.id} changed"
            return
        assert event.number == len(self.events), f"event {event.number} of {self.id} follows {len(self.events) - 1}"
        self.events.append(event.raw)
        if event.is_terminal:
            self.end(event.data["response"])

    def end(self, shown: Any) -> None:
        """Take in the object of a response that has ended. Raises AssertionError when it says something new."""
        assert shown["status"] in ("completed", "incomplete", "failed", "cancelled"), f"{self.id} is {shown['status']}"
        assert self.final is None or self.final == shown, f"{self.id} changed:\n{self.final}\n{shown}"
        self.final = shown


@dataclass
class Turn:
    """Something that was to become a part of a conversation: items, or a response with its input."""

    token: str
    texts: list[str]
    """What its items say, in order."""
    sent: int
    acked: int = 0
    """0: nobody knows whether it took place."""
    refused: bool = False
    removed: bool = False
    """It was deleted, with acknowledgement."""
    remove_asked: bool = False


@dataclass
class Conversation:
    """A conversation whose id a client knows."""

    id: str
    base: list[str] = field(default_factory=list)
    """What the items say that it began with, as a fork."""
    turns: list[Turn] = field(default_factory=list)
    forks: list[str] = field(default_factory=list)
    unknown_forks: bool = False
    """A fork was asked for and nobody knows whether it was made."""
    seen: list[Any] = field(default_factory=list)
    """Its items when they were last looked at."""
    delete_asked: bool = False
    deleted: bool = False


@dataclass
class Chain:
    """Responses that go on from one another."""

    links: list[str] = field(default_factory=list)
    """Ids, oldest first, all of them acknowledged as completed."""
    texts: list[str] = field(default_factory=list)
    """What all their items say, in order."""


class Ledger:
    """Everything that was acknowledged."""

    def __init__(self) -> None:
        self.responses: dict[str, Response] = {}
        self.conversations: dict[str, Conversation] = {}
        self.chains: list[Chain] = []
        self.secret: set[str] = set()
        """Tokens that must not be found on the disk: of runs that were not to be stored."""
        self.erased: set[str] = set()
        """Tokens that must not be found any more: their deletion was acknowledged."""
        self.resumes: list[float] = []
        """Seconds from a new process being up to the next event of a stream that the crash cut off."""
        self._deeds: defaultdict[type, list[Any]] = defaultdict(list)
        self._clock = itertools.count(1)
        self._tokens = itertools.count(1)

    def now(self) -> int:
        return next(self._clock)

    def of(self, kind: type[Deed]) -> list[Deed]:
        """Everything of a kind that clients did, for them to add to; a kind is known to its own module."""
        return self._deeds[kind]

    def new_response(self, id: str, kind: str, token: str, **known: Any) -> Response:
        """Note a response. Raises AssertionError when its id was given out before."""
        assert id not in self.responses, f"the id {id} was given out twice"
        response = self.responses[id] = Response(id, kind, token, **known)
        return response

    def new_token(self, salt: str) -> str:
        """A word that nothing else contains: letters only, so that no encoding changes it."""
        letters = "".join(chr(ord("a") + int(digit)) for digit in str(next(self._tokens)))
        return f"zq{salt}x{letters}zq"
