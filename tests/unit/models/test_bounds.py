"""The bound on an answer's text, whatever it comes in."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.journal.entries import Usage
from stateroom.models.backend import (
    Delta,
    Finished,
    ItemDelta,
    ReasoningDelta,
    RefusalDelta,
    SummaryDelta,
    TextDelta,
    ToolCallDelta,
)
from stateroom.models.bounds import bounded

END = Finished("stop", Usage(3, 4))


def token(text: str) -> dict[str, Any]:
    return {"token": text, "logprob": -0.5, "bytes": [], "top_logprobs": []}


@pytest.mark.parametrize(
    ("batch", "room", "left"),
    [
        ([TextDelta("abc"), END], 3, None),
        ([TextDelta("abcd"), END], 3, [TextDelta("abc"), END]),
        ([TextDelta("a"), ReasoningDelta("bcd"), TextDelta("e")], 3, [TextDelta("a"), ReasoningDelta("bc")]),
        ([TextDelta("a"), SummaryDelta("bcd", 2), END], 2, [TextDelta("a"), SummaryDelta("b", 2), END]),
        ([RefusalDelta("no, never")], 2, [RefusalDelta("no")]),
        ([ToolCallDelta(0, "c", "f", '{"x": 1}'), END], 4, [ToolCallDelta(0, "c", "f", '{"x"'), END]),
        ([TextDelta("abc"), ToolCallDelta(0, "c", "f", ""), END], 2, [TextDelta("ab"), END]),
        (
            [ItemDelta({"type": "message"}, "b"), TextDelta("ab")],
            1,
            [ItemDelta({"type": "message"}, "b"), TextDelta("a")],
        ),
        ([TextDelta("a"), END], 0, [END]),
        ([TextDelta("a"), END], -5, [END]),
        ([END], 0, None),
    ],
)
def test_a_batch_is_cut_where_there_is_no_more_room(batch: list[Delta], room: int, left: list[Delta] | None) -> None:
    assert bounded(batch, room) == (batch if left is None else left, left is not None)


def test_log_probabilities_stay_with_the_tokens_that_are_whole() -> None:
    text = TextDelta("one two", [token("one"), token(" two")])
    assert bounded([text], 5) == ([TextDelta("one t", [token("one")])], True)


@given(st.lists(st.text("ab", max_size=5), max_size=8), st.integers(-1, 20))
def test_no_more_than_fits_is_left_and_no_less(pieces: list[str], room: int) -> None:
    batch, cut = bounded([TextDelta(piece) for piece in pieces], room)
    whole = "".join(pieces)
    assert "".join(delta.text for delta in batch if isinstance(delta, TextDelta)) == (
        whole[: max(room, 0)] if cut else whole
    )
    assert cut == (len(whole) > room)
