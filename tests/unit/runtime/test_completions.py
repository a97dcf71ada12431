"""Answers without a run: their bounds, their ends, and what is told of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from stateroom.errors import BackendFailed, StateroomError, TooMany
from stateroom.journal.entries import ContextItem, Usage
from stateroom.models.backend import (
    Delta,
    Finished,
    ModelCall,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
)
from stateroom.models.router import Router
from stateroom.runtime.completions import Answers, Completer, Piece
from stateroom.settings import Limits
from stateroom.testing.fake_backend import FakeBackend, spoken


def call(**options: object) -> ModelCall:
    return ModelCall("fake", [ContextItem("msg_0", {"role": "user", "content": "Hi."})], {}, **options)  # type: ignore[arg-type]  # each test gives what it is about


async def read(answers: Answers) -> list[Piece]:
    pieces = []
    while (piece := await answers.next()) is not None:
        pieces.append(piece)
    return pieces


def start(backend: FakeBackend, *calls: ModelCall, **limits: int) -> Answers:
    return Completer(Router([backend]), Limits(**limits)).start(backend, calls)


async def test_reasoning_is_not_shown_and_a_refusal_is() -> None:
    batches: list[Sequence[Delta]] = [
        [ReasoningDelta("hm"), TextDelta("I")],
        [RefusalDelta(" cannot"), Finished("stop", Usage(3, 4))],
    ]
    assert await read(start(FakeBackend(batches), call())) == [
        Piece(0, "I"),
        Piece(0, " cannot", "stop", Usage(3, 4)),
    ]


async def test_tokens_are_estimated_when_the_backend_says_nothing() -> None:
    pieces = await read(start(FakeBackend(spoken("twelve bytes")), call()))
    assert pieces[-1].usage == Usage(input=pieces[-1].usage.input if pieces[-1].usage else 0, output=4, estimated=True)


async def test_an_answer_that_is_too_large_is_cut_off_as_by_a_limit_of_tokens() -> None:
    backend = FakeBackend(spoken(*["x" * 10] * 100))
    pieces = await read(start(backend, call(), output_bytes=25))
    assert pieces[-1].finish == "length"
    assert "".join(piece.text for piece in pieces) == "x" * 25
    assert backend.cut_off == 1


async def test_an_answer_in_one_piece_is_cut_off_there_too() -> None:
    backend = FakeBackend([[TextDelta("x" * 1_000), Finished("stop", Usage(3, 4))]])
    assert await read(start(backend, call(), output_bytes=25)) == [Piece(0, "x" * 25, "length", Usage(3, 4))]


async def test_an_answer_without_an_end_is_a_failure() -> None:
    backend = FakeBackend([[TextDelta("and")]])
    with pytest.raises(BackendFailed):
        await read(start(backend, call()))


async def test_the_failure_of_one_answer_ends_the_others() -> None:
    backend = FakeBackend([BackendFailed("broken")], spoken("a", "b"))
    answers = start(backend, call(), call())
    with pytest.raises(BackendFailed):
        await read(answers)
    assert await answers.next() is None


async def test_no_more_answers_go_on_at_a_time_than_runs_may() -> None:
    class Counting(FakeBackend):
        running = most = 0

        async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0)
            self.running -= 1
            return 1, True

    backend = Counting()
    await read(start(backend, *[call(max_output_tokens=0)] * 9, runs=2))
    assert backend.most == 2


async def test_more_than_may_wait_are_refused() -> None:
    backend = FakeBackend(spoken("a"), spoken("b"))
    completer = Completer(Router([backend]), Limits(runs=1, waiting_runs=1))
    answers = completer.start(backend, [call(), call()])
    with pytest.raises(TooMany):
        completer.start(backend, [call()])
    await read(answers)
    await asyncio.sleep(0)  # the tasks that put the last pieces end
    completer.start(backend, [call(max_output_tokens=0)]).close()


async def test_a_server_that_stops_takes_no_more_and_lets_go_of_what_nobody_reads() -> None:
    backend = FakeBackend(spoken("a"))
    completer = Completer(Router([backend]), Limits())
    answers = completer.start(backend, [call()])
    answers.close()
    await completer.close(5.0)
    with pytest.raises(StateroomError) as refused:
        completer.start(backend, [call()])
    assert (refused.value.status, refused.value.code) == (503, "server_stopping")


async def test_what_breaks_while_the_server_stops_is_told_as_that() -> None:
    broken = asyncio.Event()

    class Breaking(FakeBackend):
        async def count_tokens(self, call: ModelCall) -> tuple[int, bool]:
            await broken.wait()
            raise BackendFailed("the connection was closed")

    backend = Breaking()
    completer = Completer(Router([backend]), Limits())
    answers = completer.start(backend, [call(max_output_tokens=0)])
    await completer.close(0.01)
    broken.set()
    with pytest.raises(StateroomError) as told:
        await read(answers)
    assert told.value.code == "server_stopping"
