"""Replies in pieces: however they are cut, the same text and the same call come out."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.errors import BackendFailed
from stateroom.models.emulated_reply import HELD_MAX, Call, ReplyReader

TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=60)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
CUTS = st.lists(st.integers(0, 400), max_size=12)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    marks = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(marks)]


def read(reader: ReplyReader, pieces: list[str]) -> tuple[str, Call | None, bool]:
    said = "".join([reader.feed(piece) for piece in pieces])
    text, call, whole = reader.end()
    return said + text, call, whole


@given(TEXT, CUTS, st.booleans(), st.sampled_from([None, 2]))
def test_the_text_of_an_answer_survives_every_cut(text: str, cuts: list[int], ascii_only: bool, indent: int) -> None:
    reply = json.dumps({"answer": text}, ensure_ascii=ascii_only, indent=indent)
    assert read(ReplyReader({"f"}, "text"), pieces_of(reply, cuts)) == (text, None, True)


@given(st.dictionaries(TEXT, JSON, max_size=4) | st.lists(JSON, max_size=3), CUTS, st.sampled_from([None, 2]))
def test_the_json_of_an_answer_survives_every_cut(value: Any, cuts: list[int], indent: int) -> None:
    reply = json.dumps({"answer": value}, indent=indent)
    said, call, whole = read(ReplyReader({"f"}, "json"), pieces_of(reply, cuts))
    assert (json.loads(said), call, whole) == (value, None, True)


@given(st.dictionaries(TEXT, JSON, max_size=4), CUTS, st.sampled_from(["text", "json", "none"]))
def test_a_call_survives_every_cut(arguments: dict[str, Any], cuts: list[int], answer: Any) -> None:
    reply = json.dumps({"tool": "f", "arguments": arguments})
    said, call, whole = read(ReplyReader({"f"}, answer), pieces_of(reply, cuts))
    assert (said, whole) == ("", True)
    assert call is not None
    assert (call.name, json.loads(call.arguments)) == ("f", arguments)


@given(st.text(max_size=80), CUTS, st.sampled_from(["text", "json"]))
def test_whatever_a_server_says_is_read_without_an_exception(text: str, cuts: list[int], answer: Any) -> None:
    read(ReplyReader({"f"}, answer), pieces_of(text, cuts))
    read(ReplyReader({"f"}, answer), pieces_of('{"answer": "' + text, cuts))
    read(ReplyReader({"f"}, answer), pieces_of('{"answer": ' + text, cuts))
    read(ReplyReader({"f"}, answer), pieces_of('{"tool": ' + text, cuts))


@given(TEXT.filter(lambda text: not text.lstrip().startswith(("{", "`"))), CUTS)
def test_plain_text_is_passed_on(text: str, cuts: list[int]) -> None:
    said, call, whole = read(ReplyReader({"f"}, "text"), pieces_of(text, cuts))
    assert (said.strip(), call, whole) == (text.strip(), None, True)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (r"\ud83d", "�"),
        (r"\ud83d!", "�!"),
        (r"\ude00", "�"),
        (r"\ud83d\ud83d\ude00", "�😀"),
        (r"\\ud83d", r"\ud83d"),
        (r"\x41", r"\x41"),
        (r"\u12", r""),
        ("a\nb", "a\nb"),
    ],
)
def test_odd_escapes_do_no_harm(raw: str, text: str) -> None:
    closed = "" if raw.endswith(r"\u12") else '"}'
    for size in (1, 3, 100):
        whole = '{"answer": "' + raw + closed
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert read(ReplyReader({"f"}, "text"), pieces)[0] == text


def test_a_value_that_is_no_object_ends_where_the_reply_closes() -> None:
    assert read(ReplyReader({"f"}, "json"), ['{"answer": 5', "0}", "\n"]) == ("50", None, True)


def test_text_comes_out_as_soon_as_it_is_known() -> None:
    reader = ReplyReader({"f"}, "text")
    assert [reader.feed(piece) for piece in ('{"answer":', ' "', "a", "\\", "n", 'b"', " } ")] == [
        "",
        "",
        "a",
        "",
        "\n",
        "b",
        "",
    ]


@pytest.mark.parametrize("name", [["f"], {"f": 1}, 5, None, True, "g"])
def test_a_call_of_nothing_is_no_call(name: Any) -> None:
    reply = json.dumps({"tool": name, "arguments": {}})
    assert read(ReplyReader({"f"}, "text"), [reply]) == (reply, None, True)
    assert read(ReplyReader({"f"}, "none"), [reply]) == ("", None, True)


def test_halves_of_characters_in_arguments_are_replaced() -> None:
    _, call, _ = read(ReplyReader({"f"}, "none"), [r'{"tool": "f", "arguments": {"a": "x\ud800", "\udc00": 1}}'])
    assert call == Call("f", '{"a":"x\ufffd","\ufffd":1}')


@pytest.mark.parametrize("piece", [" ", "\n", "   \t"])
@pytest.mark.parametrize("beginning", ["", "{", '{"answer"', '{"tool"', "```json"])
def test_a_model_that_says_nothing_but_blanks_costs_little(beginning: str, piece: str) -> None:
    """A small one does, where the grammar lets it."""
    reader = ReplyReader({"f"}, "text")
    said = reader.feed(beginning) + "".join([reader.feed(piece) for _ in range(50_000)])
    assert len(said) > 40_000 or beginning == '{"tool"'


@pytest.mark.parametrize("beginning", ['{"tool": "f", "arguments": {"a": "', "plain", '{"answer": "done"}'])
def test_what_comes_to_nothing_is_not_kept_without_end(beginning: str) -> None:
    reader = ReplyReader({"f"}, "none" if beginning == "plain" else "text")
    reader.feed(beginning)
    for _ in range(HELD_MAX // 100_000 - 1):
        reader.feed("x" * 100_000)
    with pytest.raises(BackendFailed) as failed:
        reader.feed("x" * 200_000)
    assert failed.value.code == "tool_call_unreadable"


@pytest.mark.parametrize("answer", ["text", "json"])
def test_a_long_answer_in_one_piece_is_read_in_a_moment(answer: Any) -> None:
    value = ['"quoted"\\'] * 30_000 if answer == "json" else 'a\\"b' * 300_000
    said, _, whole = read(ReplyReader({"f"}, answer), [json.dumps({"answer": value})])
    assert whole
    assert (json.loads(said) if answer == "json" else said) == value
    broken = ReplyReader({"f"}, "text")
    assert len(broken.feed('{"answer": "' + r"\q" * 300_000)) == 600_000
