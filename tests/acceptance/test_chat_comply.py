"""The Chat Completions cases of llm-comply, unchanged, each against a real server, and none with a warning."""

from __future__ import annotations

from pathlib import Path

import llm_comply
import pytest
from llm_comply import config, result, runner, test_case
from llm_comply.schema import SpecLoader
from llm_comply.tests import get_tests

from stateroom.testing.script import Reply
from tests.acceptance.modelhost import ModelHost

pytestmark = pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")

CASES = get_tests("openai-chat")

# The case on reasoning is skipped for names that do not look like a reasoning model's; ours serves any name.
MODEL = "gpt-5-scripted"


@pytest.fixture(scope="module")
def specification() -> SpecLoader:
    return SpecLoader(str(Path(llm_comply.__file__).parent / "specs" / "openai_chat.json"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_chat_case_passes(
    url: str, model_host: ModelHost, case: test_case.TestCase, specification: SpecLoader
) -> None:
    if case.id == "chat-reasoning-summary":
        model_host.script.replies.append(Reply(text="555.", reasoning="15 * 37 is 15 * 30 and 15 * 7."))
    settings = config.ComplianceConfig(base_url=url, api_key="unused", model=MODEL, verbose=True)
    judged = runner.TestRunner(settings, CASES, specification).run_one(case)
    assert judged.errors == []
    assert judged.warnings == []
    assert judged.status is result.TestStatus.PASSED


def test_no_case_is_forgotten() -> None:
    assert len(CASES) == 9
