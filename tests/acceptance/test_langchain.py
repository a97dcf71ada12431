"""LangChain's own standard suite for chat models, unchanged, on its ChatOpenAI: over Chat Completions and Responses.

What it leaves out here needs the network (it fetches its pictures and documents) or a model that hears.
"""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests

from stateroom.testing.process import ServerProcess
from stateroom.testing.script import Call, ChatRequest, Reply, obey
from tests.acceptance.modelhost import ModelHost

# The HTTP client that ChatOpenAI keeps for all its instances must not outlive its loop.
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore:The test .* is marked with '@pytest.mark.asyncio'"),
]

_CUSTOMER = re.compile(r"customer named '([^']+)'")
_MAGIC = re.compile(r"\b(magic_function\w*)\((\d*)\)")


class SuiteModel(ModelHost):
    """Knows what a model has to answer in this suite: it calls magic functions with what they are asked for."""

    def _respond(self, request: ChatRequest) -> Reply:
        asked = max(n for n, message in enumerate(request.messages) if message.role == "user")
        text = request.messages[asked].text
        results = [message.text for message in request.messages[asked:] if message.role == "tool"]
        if (found := _MAGIC.search(text)) and request.tools and not results:
            return Reply(calls=(Call(found.group(1), f'{{"input": {found.group(2)}}}' if found.group(2) else "{}"),))
        if (request.response_format or {}).get("type") == "json_object":
            return Reply(text='{"setup": "Why do cats purr?", "punchline": "Because they can."}')
        if (named := _CUSTOMER.search(text)) and request.tools:
            arguments = {"customer_name": named.group(1), "description": "说明"}
            return Reply(calls=(Call("unicode_customer", json.dumps(arguments, ensure_ascii=False)),))
        return obey(request)


@pytest.fixture(scope="module")
def suite_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with (
        SuiteModel() as model,
        ServerProcess(tmp_path_factory.mktemp("suite") / "data", backends=(model.url,)) as server,
    ):
        yield server.url


class OverStateroom(ChatModelIntegrationTests):
    """What both surfaces have in common."""

    url = ""
    responses = False

    @pytest.fixture(autouse=True)
    def _server(self, suite_url: str) -> None:
        type(self).url = suite_url

    @property
    def chat_model_class(self) -> type[ChatOpenAI]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "scripted",
            "base_url": self.url,
            "api_key": "unused",
            "use_responses_api": self.responses,
            "max_retries": 0,
            "stream_usage": True,
        }

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[Any]]:
        return {"invoke": ["reasoning_output"], "stream": ["reasoning_output"]}

    def invoke_with_reasoning_output(self, *, stream: bool = False) -> AIMessage:
        """What the suite asks of whoever says that it counts the tokens of reasoning."""
        model, asked = ChatOpenAI(**self.chat_model_params), "reason: I think that I am.\nsay: I am."
        if not stream:
            return model.invoke(asked)
        chunks = list(model.stream(asked))
        return functools.reduce(operator.add, chunks)

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return "scripted"


class TestChatCompletions(OverStateroom):
    """ChatOpenAI as it is."""


class TestResponses(OverStateroom):
    """ChatOpenAI with `use_responses_api=True`."""

    responses = True
