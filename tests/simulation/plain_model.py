"""Responses and conversations as plain lists in memory: what the API must answer, without any of its machinery."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(eq=False)
class Item:
    """A message. Branches share the same object; one that a fork had to copy knows its original."""

    id: str
    role: str
    text: str
    original: Item | None = None
    wiped: bool = False
    """Its response or it itself was deleted: it is gone wherever it was seen."""
    dropped: bool = False
    """It went with a conversation that nobody shared any more."""

    @property
    def gone(self) -> bool:
        return self.dropped or self.is_wiped

    @property
    def is_wiped(self) -> bool:
        return self.wiped or (self.original is not None and self.original.is_wiped)


@dataclass(eq=False)
class Entry:
    """What was written together: the items of an addition, or those of a response."""

    items: list[Item]
    response: Response | None = None


@dataclass(eq=False)
class Branch:
    parent: Branch | None = None
    shared: int = 0
    """How many of the parent's own entries it shares (and all before them)."""
    entries: list[Entry] = field(default_factory=list)
    conversation: Conversation | None = None
    children: list[Branch] = field(default_factory=list)

    def fork(self, shared: int) -> Branch:
        child = Branch(self, shared)
        self.children.append(child)
        return child

    def lineage(self, upto: int | None = None) -> list[Entry]:
        own = self.entries if upto is None else self.entries[:upto]
        return own if self.parent is None else [*self.parent.lineage(self.shared), *own]

    def items(self, upto: int | None = None) -> list[Item]:
        return [item for entry in self.lineage(upto) for item in entry.items if not item.gone]

    @property
    def lives(self) -> bool:
        """Whether anybody can still reach it."""
        if self.conversation is not None:
            own = self.conversation.alive
        else:
            own = any(entry.response is not None and entry.response.alive for entry in self.entries)
        return own or any(child.lives for child in self.children)

    def drop_unneeded(self) -> None:
        """Its conversation was deleted: what no living fork shares goes; so may what its own parent kept for it."""
        kept = max((child.shared for child in self.children if child.lives), default=0)
        for entry in self.entries[kept:]:
            for item in entry.items:
                item.dropped = True
            if entry.response is not None:
                entry.response.alive = False
        if self.parent is not None and not self.parent.lives:
            self.parent.drop_unneeded()


@dataclass(eq=False)
class Response:
    id: str
    branch: Branch
    position: int
    """Of its entry among the branch's own."""
    input: list[Item]
    output: list[Item]
    previous: str = ""
    conversation: str = ""
    alive: bool = True

    def context(self) -> list[Item]:
        """All that it was given."""
        return [*self.branch.items(self.position), *living(self.input)]

    def delete(self) -> None:
        self.alive = False
        for item in [*self.input, *self.output]:
            item.wiped = True


@dataclass(eq=False)
class Conversation:
    id: str
    branch: Branch
    metadata: dict[str, str]
    alive: bool = True

    def items(self) -> list[Item]:
        return self.branch.items()

    def delete(self) -> None:
        self.alive = False
        self.branch.drop_unneeded()


def living(items: Iterable[Item]) -> list[Item]:
    return [item for item in items if not item.gone]


def continue_from(response: Response) -> Branch:
    """The branch of a response that continues this one: its own at the end of a chain, else a fork of it."""
    branch = response.branch
    at_end = response.position + 1 == len(branch.entries)
    if at_end and branch.conversation is None:
        return branch
    return branch.fork(response.position + 1)


def fork_at(branch: Branch, item: Item) -> Branch:
    """A fork whose last item is this one: whole entries are shared, items of one that is cut in two are copied."""
    above, at = branch, None
    while at is None:
        at = next((n for n, entry in enumerate(above.entries) if item in entry.items), None)
        if at is None or (above is not branch and at >= limit(branch, above)):
            assert above.parent is not None
            above, at = above.parent, None
    entry = above.entries[at]
    own = living(entry.items)
    if item is own[-1]:
        return branch.fork(len(branch.entries)) if False else fork_between(branch, above, at + 1)
    forked = fork_between(branch, above, at)
    kept = own[: own.index(item) + 1]
    forked.entries.append(Entry([Item(one.id, one.role, one.text, original=one) for one in kept]))
    return forked


def limit(branch: Branch, above: Branch) -> int:
    shared = len(branch.entries)
    while branch is not above:
        shared = branch.shared
        assert branch.parent is not None
        branch = branch.parent
    return shared


def fork_between(branch: Branch, above: Branch, count: int) -> Branch:
    raise NotImplementedError
