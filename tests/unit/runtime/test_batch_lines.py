"""An input file is read the same, however it is cut into pieces; what is wrong with it is told by line."""

from __future__ import annotations

import json
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from stateroom.runtime.batches.lines import ERRORS_MAX, Examination, Outcome, Progress, Requests, Splitter
from stateroom.wire.batches import LineUsage

URL = "/v1/responses"

LINES = st.lists(
    st.sampled_from([b"", b" ", b"\r", b"{", b"not json", b"x" * 300])
    | st.integers(0, 5).map(lambda number: request(f"c{number}"))
    | st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")),
    max_size=12,
)


def request(custom_id: str, url: str = URL, model: str = "m") -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": model}}).encode()


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[start:end] for start, end in pairwise(edges)]


def examine(pieces: list[bytes], *, lines_max: int = 1_000, line_bytes: int = 200) -> Examination:
    found = Examination(URL, depth=8, line_bytes=line_bytes, lines_max=lines_max)
    for piece in pieces:
        if not found.feed(piece):
            return found
    found.end()
    return found


def numbered(pieces: list[bytes], done: Progress) -> list[tuple[int, str]]:
    reader = Requests(URL, depth=8, line_bytes=200)
    found = [each for piece in pieces for each in reader.feed(piece, done)]
    return [(number, line.custom_id) for number, line in [*found, *reader.rest(done)]]


@settings(deadline=None)
@given(LINES, st.booleans(), st.lists(st.integers(0, 5_000), max_size=6))
def test_pieces_make_the_same_lines_wherever_they_are_cut(lines: list[bytes], ends: bool, at: list[int]) -> None:
    data = b"\n".join(lines) + (b"\n" if ends else b"")
    splitter = Splitter(200)
    found = [line for piece in cut(data, at) for line in splitter.feed(piece)]
    found += splitter.rest()
    wanted = data.split(b"\n")
    if not wanted[-1]:
        wanted.pop()
    assert found == [line if len(line) <= 200 else None for line in wanted]


@settings(deadline=None)
@given(LINES, st.lists(st.integers(0, 5_000), max_size=6))
def test_an_examination_finds_the_same_wherever_a_file_is_cut(lines: list[bytes], at: list[int]) -> None:
    data = b"\n".join(lines)
    found, whole = examine(cut(data, at)), examine([data])
    assert (found.errors, found.total, found.model) == (whole.errors, whole.total, whole.model)
    if found.errors:
        assert all(0 <= error.line <= len(lines) and error.message for error in found.errors)
    else:
        seen = [json.loads(line)["custom_id"] for line in lines if line.strip()]
        assert found.total == len(seen) == len(set(seen)) > 0
        assert numbered(cut(data, at), Progress(found.total)) == list(enumerate(seen))


@settings(deadline=None)
@given(st.integers(1, 30), st.sets(st.integers(0, 29)), st.lists(st.integers(0, 5_000), max_size=6))
def test_only_what_is_not_done_is_asked_again(count: int, done: set[int], at: list[int]) -> None:
    data = b"\n\n".join(request(f"c{number}") for number in range(count))
    progress = Progress(count)
    for number in done:
        progress.add(Outcome(number))
    left = [number for number in range(count) if number not in done]
    assert numbered(cut(data, at), progress) == [(number, f"c{number}") for number in left]
    assert progress.left == len(left)


def test_mistakes_are_told_with_the_number_of_their_line() -> None:
    lines = [request("a"), b"", b"{", request("a"), request("b", url="/v1/embeddings"), b"x" * 300, b"[]"]
    found = examine([b"\n".join(lines)])
    assert [(error.line, error.code, error.param) for error in found.errors] == [
        (3, "invalid_json_line", ""),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "invalid_url", "url"),
        (6, "line_too_long", ""),
        (7, "invalid_json_line", ""),
    ]


def test_a_file_without_requests_is_none() -> None:
    for data in (b"", b"\n\n", b" \r\n"):
        assert [error.code for error in examine([data]).errors] == ["empty_file"]


def test_as_many_requests_as_are_allowed_are_taken_and_not_one_more() -> None:
    lines = [request(f"c{number}") for number in range(6)]
    assert examine([b"\n".join(lines[:5])], lines_max=5).errors == []
    assert [error.code for error in examine([b"\n".join(lines)], lines_max=5).errors] == ["too_many_lines"]


def test_a_file_of_line_breaks_is_not_read_to_its_end() -> None:
    found = Examination(URL, depth=8, line_bytes=200, lines_max=5)
    assert not found.feed(b"\n" * 1_000_000)
    assert [error.code for error in found.errors] == ["too_many_lines"]


def test_a_file_of_mistakes_is_not_read_to_its_end() -> None:
    found = Examination(URL, depth=8, line_bytes=200, lines_max=1_000)
    assert not found.feed(b"{\n" * (ERRORS_MAX + 10))
    assert len(found.errors) == ERRORS_MAX


def test_a_model_is_told_when_all_requests_have_the_same() -> None:
    assert examine([request("a") + b"\n" + request("b")]).model == "m"
    assert examine([request("a") + b"\n" + request("b", model="n")]).model == ""


def test_an_outcome_counts_once() -> None:
    progress = Progress(2)
    for outcome in (
        Outcome(0, usage=LineUsage(1, 2, 3, 4)),
        Outcome(0, failed=True, usage=LineUsage(9)),
        Outcome(1, failed=True),
        Outcome(7),
    ):
        progress.add(outcome)
    assert (progress.completed, progress.failed, progress.left) == (1, 1, 0)
    assert progress.usage == LineUsage(1, 2, 3, 4)
