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
    deleted: bool = False
    """It or its response was deleted: it is gone wherever it was seen."""
    dropped: bool = False
    """It went with a conversation that nobody shares any more; copies of it stay."""

    @property
    def gone(self) -> bool:
        return self.dropped or self._is_deleted()

    def _is_deleted(self) -> bool:
        return self.deleted or (self.original is not None and self.original._is_deleted())


@dataclass(eq=False)
class Entry:
    """What was written together: the items of an addition, or those of a response."""

    items: list[Item]
    response: Response | None = None

    def living(self) -> list[Item]:
        return living(self.items)


@dataclass(eq=False)
class Branch:
    """A sequence of entries that may begin with those of a parent."""

    parent: Branch | None = None
    shared: int = 0
    """How many entries it shares with its parent."""
    own: list[Entry] = field(default_factory=list)
    conversation: Conversation | None = None
    children: list[Branch] = field(default_factory=list)

    def fork(self, shared: int) -> Branch:
        child = Branch(self, shared)
        self.children.append(child)
        return child

    def entries(self) -> list[Entry]:
        before = self.parent.entries()[: self.shared] if self.parent is not None else []
        return [*before, *self.own]

    def items(self, upto: int | None = None) -> list[Item]:
        return [item for entry in self.entries()[:upto] for item in entry.living()]

    def fork_at(self, item: Item) -> Branch:
        """A fork whose last item is this one: whole entries are shared, the items of one that is cut are copied."""
        entries = self.entries()
        at = next(n for n, entry in enumerate(entries) if item in entry.items)
        held = entries[at].living()
        if item is held[-1]:
            return self.fork(at + 1)
        forked = self.fork(max((n + 1 for n in range(at) if entries[n].living()), default=0))
        kept = held[: held.index(item) + 1]
        forked.own.append(Entry([Item(one.id, one.role, one.text, original=one) for one in kept]))
        return forked

    def lives(self) -> bool:
        """Whether anybody needs it: it is reached by itself or by a fork."""
        return self.is_reached() or any(child.lives() for child in self.children)

    def is_reached(self) -> bool:
        if self.conversation is not None:
            return self.conversation.alive
        return any(entry.response is not None and entry.response.alive for entry in self.own)

    def drop_unneeded(self) -> None:
        """Nobody reaches it any more: what no living fork shares goes, and so may what a parent kept for it."""
        kept = max((child.shared for child in self.children if child.lives()), default=0)
        for entry in self.own[max(0, kept - self.shared) :]:
            for item in entry.items:
                item.dropped = True
            if entry.response is not None:
                entry.response.alive = False
        if self.parent is not None and not self.parent.is_reached():
            self.parent.drop_unneeded()


@dataclass(eq=False)
class Response:
    id: str
    branch: Branch
    position: int
    """Of its entry on the branch."""
    input: list[Item]
    output: list[Item]
    previous: str
    conversation: str
    failed: bool = False
    """It can be looked at and continued, but its items are no part of its branch."""
    alive: bool = True

    def context(self) -> list[Item]:
        """All that it was given."""
        return [*self.branch.items(self.position), *living(self.input)]

    def continued(self) -> Branch:
        """Where a response that continues this one goes: on at the end of a chain, else to a fork."""
        if self.branch.conversation is None and self.position + 1 == len(self.branch.entries()):
            return self.branch
        return self.branch.fork(self.position + 1)

    def delete(self) -> None:
        self.alive = False
        for item in [*self.input, *self.output]:
            item.deleted = True
        if not self.branch.is_reached():
            self.branch.drop_unneeded()


@dataclass(eq=False)
class Conversation:
    id: str
    branch: Branch
    metadata: dict[str, str]
    alive: bool = True

    def delete(self) -> None:
        self.alive = False
        self.branch.drop_unneeded()


def living(items: Iterable[Item]) -> list[Item]:
    return [item for item in items if not item.gone]
