"""Every parser of foreign bytes refuses what it cannot take in our own words: sound input, bent in every way."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS

EXAMPLES = int(os.environ.get("EXAMPLES", "300"))
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["", "\ud800", "function", "auto", "-1", 10**400, -0.0, [], {}, [[]], [{}], {"type": None}, {"": 1}]
    ),
)


@st.composite
def bent(draw: st.DrawFn, name: str) -> bytes:
    """A seed with some of its values exchanged for odd ones, or with bytes cut out, doubled or overwritten."""
    seed = draw(st.sampled_from(SEEDS[name]))
    try:
        value = json.loads(seed)
    except ValueError:
        return _torn(draw, seed)
    for _ in range(draw(st.integers(1, 3))):
        value = _exchanged(draw, value)
    whole = json.dumps(value, allow_nan=True).encode("utf-8", "surrogatepass")
    return _torn(draw, whole) if draw(st.integers(0, 7)) == 0 else whole


def _exchanged(draw: st.DrawFn, value: Any) -> Any:
    """The value with one thing in it exchanged for an odd one, left out, or doubled."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        if draw(st.integers(0, 9)) == 0:
            return {each: held for each, held in value.items() if each != key}
        return {**value, key: _exchanged(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        position = draw(st.integers(0, len(value) - 1))
        if draw(st.integers(0, 9)) == 0:
            return value + value[position:]
        return [*value[:position], _exchanged(draw, value[position]), *value[position + 1 :]]
    return draw(ODD)


def _torn(draw: st.DrawFn, data: bytes) -> bytes:
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        data = data[:start] + draw(st.binary(max_size=6) | st.just(data[start:end] * 2)) + data[end:]
    return data


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_survives_whatever_it_is_given(name: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(bent(name) | st.binary(max_size=200))
    def survives(data: bytes) -> None:
        TARGETS[name](data)

    survives()


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_taken(name: str) -> None:
    for seed in SEEDS[name]:
        TARGETS[name](seed)
