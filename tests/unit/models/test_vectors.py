"""Vectors in both of their forms."""

from __future__ import annotations

import base64
import math
from array import array

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.models.vectors import TooShort, is_base64, written

NUMBERS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40)


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def as_base64(numbers: list[float]) -> msgspec.Raw:
    return raw(base64.b64encode(array("f", numbers).tobytes()).decode())


@given(NUMBERS)
def test_a_vector_is_the_same_in_both_forms(numbers: list[float]) -> None:
    listed, encoded = raw(numbers), as_base64(numbers)
    assert bytes(written(listed, as_base64=True)) == bytes(encoded)
    assert msgspec.json.decode(written(encoded, as_base64=False)) == numbers
    assert written(listed, as_base64=False) is listed, "what is in the right form is not touched"
    assert written(encoded, as_base64=True) is encoded


@given(NUMBERS, st.integers(1, 40), st.booleans())
def test_a_shortened_vector_has_its_first_numbers_and_length_one(
    numbers: list[float], size: int, to_base64: bool
) -> None:
    given = as_base64(numbers)
    if size > len(numbers):
        with pytest.raises(TooShort) as short:
            written(given, as_base64=to_base64, size=size)
        assert short.value.size == len(numbers)
        return
    made = written(given, as_base64=to_base64, size=size)
    assert is_base64(made) == to_base64
    kept = msgspec.json.decode(written(made, as_base64=False), type=list[float])
    assert len(kept) == size
    if size == len(numbers):
        assert kept == numbers
    elif 1e-30 < math.hypot(*numbers[:size]) < 1e30:
        assert math.isclose(math.hypot(*kept), 1.0, rel_tol=1e-5)
        largest = max(range(size), key=lambda at: abs(numbers[at]))
        assert math.copysign(1, kept[largest]) == math.copysign(1, numbers[largest])


@pytest.mark.parametrize(
    "text", ["null", "{}", "[]", '""', "1.0", "[[1.0]]", '["1"]', "[null]", "[true]", '"a b"', '"\\u0041"', "[NaN]"]
)
@pytest.mark.parametrize("to_base64", [True, False])
def test_what_is_no_vector_is_not_passed_on(text: str, to_base64: bool) -> None:
    with pytest.raises(ValueError, match="vector"):
        written(msgspec.Raw(text.encode()), as_base64=to_base64)


def test_base64_that_holds_no_floats_is_refused_where_it_is_read() -> None:
    for text in ('"AAA"', '"AAAAAAA="'):
        with pytest.raises(ValueError, match=r"base64|bytes"):
            written(msgspec.Raw(text.encode()), as_base64=False)
