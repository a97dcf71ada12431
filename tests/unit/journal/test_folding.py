"""Folding a stream's events: exact for whatever it takes, and small for what streams are made of."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.journal.frames import FOLDED, FramePacker
from stateroom.journal.frames_fold import fold, unfold

SAID = st.tuples(st.sampled_from(["a.delta", "a.done", "b.delta"]), st.text(max_size=12))


def event(kind: str, number: int, text: str) -> bytes:
    said = {"type": kind, "delta": text, "sequence_number": number}
    data = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
    return f"event: {kind}\ndata: {data}\n\n".encode("utf-8", "surrogatepass")


@given(st.integers(0, 2**20), st.lists(SAID, max_size=30))
def test_numbered_events_come_back_exactly(first: int, said: list[tuple[str, str]]) -> None:
    body = b"".join(event(kind, number, text) for number, (kind, text) in enumerate(said, first))
    folded = fold(body)
    if said:
        assert folded is not None
        assert unfold(folded) == body


@given(st.binary(max_size=200))
def test_anything_else_is_left_alone_or_comes_back_exactly(body: bytes) -> None:
    folded = fold(body)
    assert folded is None or unfold(folded) == body
    packer = FramePacker()
    assert packer.unpack(packer.pack(body)) == body


def test_numbers_that_do_not_follow_each_other_are_not_folded() -> None:
    assert fold(event("a", 3, "x") + event("a", 5, "y")) is None


@given(st.binary(max_size=100))
def test_a_damaged_fold_is_refused_or_is_something_else_but_never_a_crash(folded: bytes) -> None:
    try:
        unfold(folded)
    except ValueError:
        return


def test_a_stream_of_deltas_is_packed_to_little_more_than_its_text() -> None:
    words = ["the ", "sea ", "is ", "wide ", "and ", "deep ", "under ", "stars "]
    body = b"".join(event("response.output_text.delta", n, words[n * n % 8]) for n in range(400))
    packed = FramePacker().pack(body)
    assert packed[0] == FOLDED
    assert len(packed) < len(body) // 50


@pytest.mark.parametrize("cut", [1, 5, 9])
def test_a_fold_that_is_cut_off_is_an_error(cut: int) -> None:
    folded = fold(event("a", 0, "x"))
    assert folded is not None
    with pytest.raises(ValueError, match=r"cut off|multiple"):
        unfold(folded[:cut])
