"""Placeholders become secrets, and secrets placeholders, however the bytes are cut."""

from __future__ import annotations

import base64
import itertools
import json
import time
from html import escape
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from stateroom.workspaces.egress.policy import Secret
from stateroom.workspaces.egress.secrets import Mask, Substitution

BYTES = st.text("abc", max_size=200).map(str.encode)
KEYS = st.sets(st.text("abc", min_size=3, max_size=12).map(str.encode), min_size=1, max_size=3)


@given(BYTES, KEYS, st.lists(st.integers(0, 200), max_size=12))
def test_no_cut_lets_a_secret_through(data: bytes, keys: set[bytes], cuts: list[int]) -> None:
    mask = Mask(dict.fromkeys(keys, b"-"))
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    out = b"".join([mask.feed(piece) for piece in pieces] + [mask.finish()])
    assert not any(key in out for key in keys)
    assert out == Mask(dict.fromkeys(keys, b"-")).whole(data)


@given(BYTES, KEYS)
def test_no_more_is_held_back_than_may_be_a_beginning(data: bytes, keys: set[bytes]) -> None:
    mask = Mask(dict.fromkeys(keys, b"-"))
    mask.feed(data)
    held = mask.finish()
    assert len(held) < max(map(len, keys))
    if not any(key.startswith(data[-1:]) or data[-1:] in key for key in keys):
        assert held == b""


@given(BYTES, KEYS)
def test_bytes_of_a_web_socket_keep_their_number(data: bytes, keys: set[bytes]) -> None:
    mask = Mask(dict.fromkeys(keys, b"placeholder"), same_length=True)
    assert len(mask.feed(data) + mask.finish()) == len(data)


def test_a_secret_is_found_in_the_forms_of_headers_json_and_urls() -> None:
    value = 'pass"word/with + signs\\and é <&>'
    substitution = Substitution([Secret("a.test", "A", value, "PLACE")])
    basic = base64.b64encode(b"user:PLACE")
    asked = [(b"X-One", b"a PLACE b PLACE"), (b"Authorization", b"Basic " + basic), (b"Host", b"PLACE")]
    headers, hidden = substitution.outgoing(asked)
    put = base64.b64encode(f"user:{value}".encode())
    assert headers[0][1] == f"a {value} b {value}".encode()
    assert headers[1][1] == b"Basic " + put
    assert headers[2][1] == b"PLACE"
    mask = Mask(hidden)
    assert mask.whole(b"x" + put) == b"x" + basic
    text = json.dumps(value, ensure_ascii=False)[1:-1]
    careful = text.replace("<", "\\u003c").replace("&", "\\u0026").replace(">", "\\u003e")
    for shown in (value, json.dumps(value)[1:-1], text, careful, quote(value, safe=""), escape(value)):
        assert mask.whole(f"<{shown}>".encode()) == b"<PLACE>"


def test_a_short_secret_is_put_in_and_not_looked_for() -> None:
    headers, hidden = Substitution([Secret("a.test", "A", "short", "PLACE")]).outgoing([(b"x", b"PLACE")])
    assert headers == [(b"x", b"short")]
    assert hidden == {}


def test_what_is_no_base64_is_left_alone() -> None:
    substitution = Substitution([Secret("a.test", "A", "a secret value", "PLACE")])
    for value in (b"Basic ====", b"Basic !", b"Basic ", b"Bearer abc", b"Basic dXNlcjpwYXNz"):
        assert substitution.outgoing([(b"Authorization", value)])[0] == [(b"Authorization", value)]


def test_many_long_secrets_hold_nobody_up() -> None:
    values = ['a"/&<' * 250 + str(number) for number in range(50)]
    secrets = [Secret("a.test", f"S{at}", value, f"placeholder_{at}") for at, value in enumerate(values)]
    began = time.process_time()
    for number in range(10):
        login = base64.b64encode(f"{number}:placeholder_1".encode())
        _, hidden = Substitution(secrets).outgoing([(b"Authorization", b"Basic " + login)])
        mask = Mask(hidden)
        out = mask.feed(b'a"/&<' * 2_000) + mask.feed(b"-") + mask.feed(values[7].encode()) + mask.finish()
        assert b"placeholder_7" in out
    assert time.process_time() - began < 5  # each took seconds when they were made into one regular expression


def test_what_looks_like_many_beginnings_is_held_back_and_told_in_the_end() -> None:
    mask = Mask({b"ab" * 500 + b"c": b"-"})
    data = b"ab" * 499 + b"ax"
    told = mask.feed(data) + mask.feed(b"y") + mask.feed(b"ab" * 500) + mask.feed(b"c.") + mask.finish()
    assert told == data + b"y-."
