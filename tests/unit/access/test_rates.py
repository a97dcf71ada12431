"""Rate limits: buckets that fill steadily, for keys and projects together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.access.rates import Allowance, Bucket, Rates
from stateroom.errors import TooMany
from tests.unit.runtime.stage import MovedClock


def rates(clock: MovedClock, *, key: Allowance | None = None, project: Allowance | None = None) -> Rates:
    return Rates(clock, of_project=lambda name: project or Allowance(), of_key=lambda name: key)


def test_without_limits_nothing_is_counted_and_nothing_is_said() -> None:
    free = rates(MovedClock())
    for _ in range(10_000):
        assert free.ask("p", "k") == ({}, None)
    free.begin("p", "k")
    free.end("p", "k", 1_000_000)


def test_a_minute_takes_as_many_requests_as_the_limit_says() -> None:
    clock = MovedClock()
    bound = rates(clock, key=Allowance(requests_per_minute=6))
    for left in range(5, -1, -1):
        headers, refusal = bound.ask("p", "k")
        assert refusal is None
        assert headers["x-ratelimit-limit-requests"] == "6"
        assert headers["x-ratelimit-remaining-requests"] == str(left)
    headers, refusal = bound.ask("p", "k")
    assert refusal is not None
    assert (refusal.code, refusal.status, refusal.headers()["retry-after"]) == ("rate_limit_exceeded", 429, "10")
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "1m0s"
    clock.seconds += 10
    assert bound.ask("p", "k")[1] is None
    assert bound.ask("p", "k")[1] is not None


def test_waiting_for_as_long_as_it_says_is_enough() -> None:
    clock = MovedClock()
    bound = rates(clock, key=Allowance(requests_per_minute=7))
    refusal = None
    while refusal is None:
        _, refusal = bound.ask("p", "k")
    clock.seconds += float(refusal.headers()["retry-after"])
    assert bound.ask("p", "k")[1] is None


def test_a_project_has_one_account_for_all_its_keys() -> None:
    bound = rates(MovedClock(), project=Allowance(requests_per_minute=2))
    assert bound.ask("p", "a")[1] is None
    assert bound.ask("p", "b")[1] is None
    assert bound.ask("p", "c")[1] is not None
    assert bound.ask("other", "c")[1] is None


def test_a_request_that_is_refused_costs_nothing() -> None:
    clock = MovedClock()
    bound = rates(clock, key=Allowance(requests_per_minute=60), project=Allowance(requests_per_minute=6))
    for _ in range(50):
        bound.ask("p", "k")
    clock.seconds += 60
    headers, _ = bound.ask("p", "k")
    assert headers["x-ratelimit-limit-requests"] == "6"
    other, _ = bound.ask("elsewhere", "k")
    assert other["x-ratelimit-limit-requests"] == "6"


def test_tokens_are_charged_when_a_run_has_ended_and_hold_back_the_next() -> None:
    clock = MovedClock()
    bound = rates(clock, project=Allowance(tokens_per_minute=600))
    bound.begin("p", "")
    bound.begin("p", "")
    bound.end("p", "", 900)
    with pytest.raises(TooMany) as refused:
        bound.begin("p", "")
    assert refused.value.code == "rate_limit_exceeded"
    assert float(refused.value.headers()["retry-after"]) == pytest.approx(31, abs=1)
    headers, refusal = bound.ask("p", "")
    assert refusal is None  # looking things up goes on
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    clock.seconds += 31
    bound.begin("p", "")


def test_so_many_runs_go_on_at_the_same_time_and_no_more() -> None:
    bound = rates(MovedClock(), key=Allowance(runs=2))
    bound.begin("p", "k")
    bound.begin("p", "k")
    with pytest.raises(TooMany):
        bound.begin("p", "k")
    bound.begin("p", "other")
    bound.end("p", "k", 10)
    bound.begin("p", "k")


def test_a_run_that_could_not_be_started_gives_its_place_back() -> None:
    bound = rates(MovedClock(), key=Allowance(runs=1))
    with pytest.raises(ValueError, match="no"), bound.begun("p", "k"):
        raise ValueError("no")
    with bound.begun("p", "k"):
        pass
    with pytest.raises(TooMany), bound.begun("p", "k"):
        pass


def test_a_run_that_goes_on_after_a_crash_takes_its_place_whatever_the_limit() -> None:
    bound = rates(MovedClock(), key=Allowance(runs=1))
    bound.resume("p", "k")
    bound.resume("p", "k")
    bound.end("p", "k", 0)
    with pytest.raises(TooMany):
        bound.begin("p", "k")


def test_accounts_of_the_idle_are_forgotten_and_those_of_the_busy_are_not() -> None:
    bound = rates(MovedClock(), project=Allowance(runs=1))
    bound.begin("busy", "")
    for number in range(10_000):
        bound.ask(f"idle{number}", "")
    assert len(bound._accounts) < 5_000
    with pytest.raises(TooMany):
        bound.begin("busy", "")


@given(st.integers(1, 10_000), st.lists(st.tuples(st.floats(0, 90), st.integers(0, 500)), max_size=30))
def test_no_bucket_gives_more_than_its_size_and_what_has_flowed_in(size: int, steps: list[tuple[float, int]]) -> None:
    now = 0.0
    bucket, taken = Bucket(size, now), 0.0
    for seconds, amount in steps:
        now += seconds
        if bucket.level(now) >= amount:
            bucket.take(amount, now)
            taken += amount
    assert taken <= size + now * size / 60 + 1e-6
    assert bucket.level(now) <= size
