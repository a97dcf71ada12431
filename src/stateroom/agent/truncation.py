"""Which of a context's items go when it is too long for its model: whole turns, the oldest first. Pure.

System and developer messages and the summary of a compaction stay, and so does the newest turn's question. A result
goes with its call. Within the newest turn the oldest steps go, where a step is what the model said and called, with the
results.
"""

from __future__ import annotations

from collections.abc import Sequence

from stateroom.agent.pairs import call_id_of, is_call, is_result
from stateroom.agent.tokens import estimate_item
from stateroom.journal.entries import ContextItem

INSTRUCTING = frozenset({"system", "developer"})


def fitted(
    items: Sequence[ContextItem], tokens: int, *, pinned: ContextItem | None = None, scale: float = 1.0
) -> list[ContextItem] | None:
    """The items without the oldest of them, so that they have no more than so many tokens; None: nothing can go.

    As little as possible stays when even that is too much. `scale` is what an estimated token really counts.
    """
    weights = [estimate_item(held.item) * scale for held in items]
    excess = sum(weights) - tokens
    return _without(items, _oldest(items, pinned), weights, excess)


def shortened(items: Sequence[ContextItem], *, pinned: ContextItem | None = None) -> list[ContextItem] | None:
    """The items without the oldest quarter of what can go, for when nobody knows how many tokens are allowed."""
    units = _oldest(items, pinned)
    removable = sum(len(unit) for unit in units)
    return _without(items, units, [1.0] * len(items), max(1, removable // 4))


def _without(
    items: Sequence[ContextItem], units: list[list[int]], weights: list[float], excess: float
) -> list[ContextItem] | None:
    gone: set[int] = set()
    calls: set[str] = set()
    for unit in units:
        if excess <= 0:
            break
        gone.update(unit)
        calls |= {call_id_of(items[n].item) for n in unit if is_call(items[n].item)}
        excess -= sum(weights[n] for n in unit)
    if not gone:
        return None
    kept = []
    for n, held in enumerate(items):
        if n in gone:
            continue
        if is_call(held.item):
            calls.discard(call_id_of(held.item))
        elif is_result(held.item) and call_id_of(held.item) in calls:
            continue
        kept.append(held)
    return kept


def _oldest(items: Sequence[ContextItem], pinned: ContextItem | None) -> list[list[int]]:
    """Positions of what may go together, oldest first; the newest question and what came last are not among them."""
    turns: list[list[int]] = [[]]
    for n, held in enumerate(items):
        role = held.item.get("role")
        if held is pinned or role in INSTRUCTING:
            continue
        if role == "user" and turns[-1]:
            turns.append([])
        turns[-1].append(n)
    newest = turns.pop()
    rest = [n for n in newest if items[n].item.get("role") != "user"]
    return [*[turn for turn in turns if turn], *_steps(items, rest)[:-1]]


def _steps(items: Sequence[ContextItem], positions: list[int]) -> list[list[int]]:
    steps: list[list[int]] = []
    answered = True
    for n in positions:
        result = is_result(items[n].item)
        if answered and not result:
            steps.append([])
        answered = result
        if not steps:
            steps.append([])
        steps[-1].append(n)
    return steps
