"""The Open Responses cases of llm-comply, unchanged, each against a real server."""

from __future__ import annotations

from pathlib import Path

import llm_comply
import pytest
from llm_comply import config, result, runner, test_case
from llm_comply.schema import SpecLoader
from llm_comply.tests import get_tests

pytestmark = pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")

CASES = list(get_tests("open-responses"))

# The case on reasoning is skipped for names that do not look like a reasoning model's; ours serves any name.
MODEL = "gpt-5-scripted"


@pytest.fixture(scope="module")
def specification() -> SpecLoader:
    return SpecLoader(str(Path(llm_comply.__file__).parent / "specs" / "openresponses.json"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_an_open_responses_case_passes(url: str, case: test_case.TestCase, specification: SpecLoader) -> None:
    settings = config.ComplianceConfig(base_url=url, api_key="unused", model=MODEL, verbose=True)
    judged = runner.TestRunner(settings, CASES, specification).run_one(case)
    assert judged.errors == []
    assert judged.warnings == []
    assert judged.status is result.TestStatus.PASSED


def test_no_case_is_forgotten() -> None:
    assert len(CASES) == 13
