"""What is kept of a proxy's decisions until it is written down, and how much of it."""

from __future__ import annotations

from stateroom.testing.journal_stage import SetClock
from stateroom.workspaces.egress.decisions import DECISIONS_MAX, Decisions


def kept() -> Decisions:
    return Decisions(SetClock())


def domains(decisions: Decisions, workspace: str = "a") -> list[str]:
    return [each.domain for each in decisions.of(workspace)]


def test_the_same_again_is_counted_and_has_both_times() -> None:
    clock = SetClock()
    decisions = Decisions(clock)
    decisions.add("a", "one.example", 443, "allowed", "listed")
    clock.time += 5
    decisions.add("a", "two.example", 443, "allowed", "listed")
    decisions.add("a", "one.example", 443, "allowed", "listed")
    decisions.add("a", "one.example", 443, "failed", "unreachable")
    two, one, failed = decisions.of("a")
    began = int(clock.time * 1000) - 5_000
    assert (one.count, one.first_at, one.last_at) == (2, began, began + 5_000)
    assert (two.count, two.domain) == (1, "two.example")
    assert (failed.verdict, failed.count) == ("failed", 1)
    assert decisions.of("b") == ()


def test_what_was_decided_longest_ago_makes_room() -> None:
    decisions = kept()
    decisions.add("a", "first.example", 443, "refused", "not_listed")
    decisions.add("a", "often.example", 443, "allowed", "listed")
    for number in range(DECISIONS_MAX - 2):
        decisions.add("a", f"{number}.example", 443, "refused", "not_listed")
    decisions.add("a", "often.example", 443, "allowed", "listed")
    assert len(decisions.of("a")) == DECISIONS_MAX
    decisions.add("a", "last.example", 443, "refused", "not_listed")
    assert len(decisions.of("a")) == DECISIONS_MAX
    assert domains(decisions)[:1] == ["0.example"]
    assert domains(decisions)[-2:] == ["often.example", "last.example"]


def test_what_is_being_written_down_is_lost_only_when_it_was() -> None:
    decisions = kept()
    decisions.add("a", "one.example", 443, "allowed", "listed")
    first = decisions.seal("a")
    decisions.add("a", "one.example", 443, "allowed", "listed")
    assert [each.count for each in decisions.of("a")] == [1, 1]
    again = decisions.seal("a")  # the first time it could not be written
    assert again[:1] == first
    decisions.written("a", first)
    assert decisions.of("a") == again
    decisions.written("a", again)
    assert decisions.of("a") == decisions.seal("a") == ()


def test_what_is_sealed_again_and_again_is_bounded() -> None:
    decisions = kept()
    for number in range(3 * DECISIONS_MAX):
        decisions.add("a", f"{number}.example", 443, "refused", "not_listed")
        decisions.seal("a")
    assert domains(decisions) == [f"{number}.example" for number in range(2 * DECISIONS_MAX, 3 * DECISIONS_MAX)]
    decisions.forget("a")
    assert decisions.of("a") == ()
