"""The judgements of a soak: what must not grow, must not; what is left behind, is found."""

from __future__ import annotations

from xml.etree import ElementTree

import msgspec

from tests.soak.judge import MIB, judge_findings, judge_idle, judge_left, judge_memory
from tests.soak.picture import Event, draw
from tests.soak.samples import Sample

PLAIN = Sample(0.0, 0, 100 * MIB, 8, 30, 6, 1, 0, MIB, 0, 5, 0.01, 0.02, "load")


def life(growth: float, *, number: int = 0, start: float = 0.0, minutes: int = 30) -> list[Sample]:
    """A sample a minute; memory grows by so many MiB a minute."""
    return [
        msgspec.structs.replace(PLAIN, at=start + 60.0 * minute, life=number, rss=int((100 + growth * minute) * MIB))
        for minute in range(minutes)
    ]


def test_memory_that_stays_is_good_and_memory_that_grows_is_not() -> None:
    assert judge_memory(life(0.0)).good
    assert judge_memory(life(0.1)).good
    assert not judge_memory(life(1.0)).good


def test_memory_is_judged_in_the_longest_life_after_its_warm_up() -> None:
    short = life(50.0, number=0, minutes=5)
    warming = life(0.0, number=1, start=300.0)
    for minute, sample in enumerate(warming[:6]):
        sample.rss = (60 + 5 * minute) * MIB
    assert judge_memory([*short, *warming]).good


def test_an_idle_server_that_holds_more_than_in_its_first_pause_is_found() -> None:
    pauses = [msgspec.structs.replace(PLAIN, at=at, phase="idle") for at in (100.0, 500.0)]
    assert all(verdict.good for verdict in judge_idle([*life(0.0), *pauses]))
    pauses[1].descriptors += 4
    bad = [verdict.what for verdict in judge_idle([*life(0.0), *pauses]) if not verdict.good]
    assert bad == ["descriptors of the idle server, first and last pause"]
    assert not judge_idle(life(0.0))[0].good, "nothing was looked at"


def test_rows_blobs_and_runs_that_are_left_are_found() -> None:
    assert all(verdict.good for verdict in judge_left({"entries": 10, "runs": 0}, {"batch": 3}, 0, 0))
    assert not judge_left({"runs": 1}, {}, 0, 0)[1].good
    assert not judge_left({}, {"file": 1}, 0, 0)[1].good
    assert not judge_left({}, {}, 0, 1)[1].good
    assert not judge_left({}, {}, 2, 0)[0].good


def test_deeds_that_went_wrong_are_found_unless_a_fault_excuses_them() -> None:
    assert judge_findings([], 10, 5).good
    assert not judge_findings(["chain: it broke"], 10, 0).good


def test_the_picture_is_an_svg_with_a_curve_for_each_life() -> None:
    samples = [*life(0.0), *life(0.0, number=1, start=1_900.0)]
    drawn = ElementTree.fromstring(draw("30 minutes <of load>", samples, [Event(1_800.0, 1_850.0, "kill")]))
    curves = [each for each in drawn.iter("{http://www.w3.org/2000/svg}polyline") if each.get("stroke") == "#2563eb"]
    assert len(curves) >= 2 * 5
    assert "30 minutes <of load>" in "".join(drawn.itertext())
