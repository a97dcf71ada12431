"""What all tests may ask for: one real server process with one scripted model behind it, and clients of both."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI

from stateroom.testing.process import ServerProcess
from tests.acceptance.contract import hold_answer, hold_async_answer
from tests.acceptance.modelhost import ModelHost, Seen

# The same examples in every run, so that a change is judged by what it changed; `make search` looks for new ones.
# How long one takes is no verdict on it: the machine may be busy.
_OF_BOTH = settings(deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fixed", _OF_BOTH, derandomize=True)
settings.register_profile("search", _OF_BOTH, derandomize=False)
settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """What a test that starts logging changes must not reach the next one."""
    loggers = [logging.getLogger(name) for name in ("stateroom", "opentelemetry")]
    before = [(logger.level, logger.propagate, logger.handlers[:]) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("stateroom") and isinstance(logger, logging.Logger):
            logger.disabled = False  # import-linter disables all that there are


@pytest.fixture(scope="session")
def model_host() -> Iterator[ModelHost]:
    with ModelHost() as host:
        yield host


@pytest.fixture(scope="session")
def stateroom_server(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Shared by all tests of this process: they must not stop it, nor expect to be alone on it."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "data", backends=(model_host.url,)) as process:
        yield process


@pytest.fixture
def url(stateroom_server: ServerProcess) -> str:
    return stateroom_server.url


@pytest.fixture
def seen(model_host: ModelHost) -> Seen:
    return Seen(model_host)


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    checked = DefaultHttpxClient(base_url=url, event_hooks={"response": [hold_answer]})
    with OpenAI(base_url=url, api_key="unused", max_retries=0, timeout=30, http_client=checked) as client:
        yield client


@pytest.fixture
async def async_client(url: str) -> AsyncIterator[AsyncOpenAI]:
    checked = DefaultAsyncHttpxClient(base_url=url, event_hooks={"response": [hold_async_answer]})
    async with AsyncOpenAI(base_url=url, api_key="unused", max_retries=0, timeout=30, http_client=checked) as client:
        yield client
