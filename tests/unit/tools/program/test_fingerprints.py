"""What clients carry of a program cannot be made or changed by them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stateroom.errors import InvalidRequest
from stateroom.tools.program.fingerprints import Fingerprints

PRINTS = Fingerprints(bytes(32), "engine 1")


@given(st.text(), st.text(), st.text(max_size=60), st.floats(0, 4e9))
def test_what_was_made_is_read(code: str, project: str, seed: str, time: float) -> None:
    code = code.encode("utf-8", "replace").decode()
    made = PRINTS.make(code, project=project, seed=seed, time=time)
    identity = PRINTS.read(made, code, project=project)
    assert (identity.engine, identity.seed, identity.time_ms) == ("engine 1", seed, int(time * 1000))


@given(st.text())
def test_whatever_else_is_sent_is_refused(text: str) -> None:
    for sent in (text, "prog1." + text):
        with pytest.raises(InvalidRequest):
            PRINTS.read(sent, "code", project="p")


def test_no_character_of_it_can_be_changed() -> None:
    made = PRINTS.make("code", project="p", seed="s", time=1)
    for at in range(len("prog1."), len(made)):
        for other in "A_-9":
            changed = made[:at] + other + made[at + 1 :]
            if changed == made:
                continue
            try:
                read = PRINTS.read(changed, "code", project="p")
            except InvalidRequest:
                continue
            # The bits of the last character that stand for nothing.
            assert at == len(made) - 1
            assert read == PRINTS.read(made, "code", project="p")


def test_it_fits_into_a_field_of_an_item() -> None:
    assert len(PRINTS.make("code" * 10_000, project="p", seed="0" * 26, time=1.8e9)) < 256
