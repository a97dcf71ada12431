"""An answer ends in front of its stop sequence, wherever that is cut in pieces, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stateroom.journal.entries import Usage
from stateroom.models.backend import Delta, Finished, ModelCall, ReasoningDelta, TextDelta, ToolCallDelta
from stateroom.models.stops import StopCutter, heeding_stops
from stateroom.testing.fake_backend import FakeBackend, spoken


def cut(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    cutter = StopCutter(stops)
    shown = [cutter.feed(piece) for piece in pieces]
    shown.append(cutter.flush())
    return [delta.text for delta in shown if delta is not None], cutter.found


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "found"),
    [
        (["one two"], ["three"], "one two", False),
        (["one STOP two"], ["STOP"], "one ", True),
        (["one ST", "OP two"], ["STOP"], "one ", True),
        (["one S", "T", "O", "P"], ["STOP"], "one ", True),
        (["one STO", "RY"], ["STOP"], "one STORY", False),
        (["one STO"], ["STOP"], "one STO", False),
        (["aab"], ["ab"], "a", True),
        (["aa", "b"], ["ab"], "a", True),
        (["a\n", "\nb"], ["\n\n"], "a", True),
        (["one two"], ["two", "one"], "", True),
        (["one"], [], "one", False),
    ],
)
def test_text_ends_in_front_of_the_first_stop(pieces: list[str], stops: list[str], text: str, found: bool) -> None:
    shown, was_found = cut(pieces, stops)
    assert ("".join(shown), was_found) == (text, found)


@given(st.lists(st.text("abc", max_size=4), max_size=12), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3))
def test_how_the_text_is_cut_in_pieces_does_not_matter(pieces: list[str], stops: list[str]) -> None:
    shown, found = cut(pieces, stops)
    text, cuts = "".join(pieces), []
    end = 0
    while end <= len(text) and not cuts:  # where a reader of the growing text would see the first stop
        cuts = sorted(at for stop in stops if (at := text[:end].find(stop)) >= 0)
        end += 1
    assert found == bool(cuts)
    whole = "".join(shown)
    assert text.startswith(whole)
    assert whole == (text[: cuts[0]] if cuts else text)


@given(
    st.lists(st.text("abcd", min_size=1, max_size=4), max_size=8),
    st.lists(st.text("abcd", min_size=1, max_size=5), min_size=1, max_size=3),
    st.lists(st.integers(1, 3), max_size=8),
)
@example(["a", "b", "c", "d"], ["abcd", "c"], [])
@example(["a", "b", "c", "d"], ["abcd", "c"], [4])
@example(["abc", "d"], ["bcd", "abc"], [])
@example(["ab", "cd"], ["abcd", "c", "b"], [2])
def test_overlapping_stops_cut_alike_however_tokens_are_bundled(
    tokens: list[str], stops: list[str], sizes: list[int]
) -> None:
    def told(bundles: list[list[str]]) -> tuple[str, list[str], bool]:
        cutter = StopCutter(stops)
        shown = [cutter.feed("".join(bundle), [token(each) for each in bundle]) for bundle in bundles]
        deltas = [delta for delta in [*shown, cutter.flush()] if delta is not None]
        kept = [one["token"] for delta in deltas for one in delta.logprobs or ()]
        return "".join(delta.text for delta in deltas), kept, cutter.found

    bundles, rest = [], tokens
    for size in [*sizes, len(tokens)]:
        bundles.append(rest[:size])
        rest = rest[size:]
    alone = told([[each] for each in tokens])
    assert told(bundles) == alone
    assert told([[each] for each in "".join(tokens)])[0] == alone[0]


def test_what_may_begin_a_stop_is_held_back_no_longer_than_needed() -> None:
    cutter = StopCutter(["STOP"])
    first, second = cutter.feed("one ST"), cutter.feed("ART")
    assert (first, second) == (TextDelta("one "), TextDelta("START"))


def token(text: str) -> dict[str, Any]:
    return {"token": text, "logprob": -0.5, "bytes": [], "top_logprobs": []}


def test_log_probabilities_stay_with_the_text_that_is_shown() -> None:
    cutter = StopCutter(["STOP"])
    shown = [cutter.feed("one S", [token("one"), token(" S")]), cutter.feed("aw STOP", [token("aw"), token(" STOP")])]
    assert "".join(delta.text for delta in shown if delta) == "one Saw "
    told = [one["token"] for delta in shown if delta for one in delta.logprobs or ()]
    assert told == ["one", " S", "aw"]


async def collect(backend: FakeBackend, stops: list[str]) -> list[Delta]:
    call = ModelCall("m", [], {}, stop=stops)
    return [delta async for batch in heeding_stops(backend, call) for delta in batch]


async def test_a_server_that_goes_on_is_hung_up_on() -> None:
    backend = FakeBackend(spoken("one ", "ST", "OP two", "three"))
    assert await collect(backend, ["STOP"]) == [TextDelta("one "), Finished("stop")]
    assert backend.cut_off == 1


async def test_the_usage_is_kept_when_it_comes_with_the_stop() -> None:
    usage = Usage(3, 2)
    backend = FakeBackend([[TextDelta("one STOP two"), Finished("length", usage)]])
    assert await collect(backend, ["STOP"]) == [TextDelta("one "), Finished("stop", usage)]


async def test_what_was_held_back_comes_before_what_is_no_text() -> None:
    call = ToolCallDelta(0, "c", "f", "{}")
    deltas: list[Delta] = [TextDelta("one ST"), ReasoningDelta("hm"), TextDelta("S"), call, Finished("stop")]
    backend = FakeBackend([[delta] for delta in deltas])
    assert await collect(backend, ["STOP"]) == [
        TextDelta("one "),
        TextDelta("ST"),
        ReasoningDelta("hm"),
        TextDelta("S"),
        call,
        Finished("stop"),
    ]


async def test_reasoning_and_arguments_do_not_stop() -> None:
    deltas: list[Delta] = [ReasoningDelta("STOP"), ToolCallDelta(0, "c", "f", '"STOP"'), Finished("stop")]
    backend = FakeBackend([deltas])
    assert await collect(backend, ["STOP"]) == deltas
