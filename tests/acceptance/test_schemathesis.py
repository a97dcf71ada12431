"""schemathesis over the OpenAPI document: whatever a client sends, no 5xx, and every answer is one that it knows.

What is sent is valid by the document, or not, or valid and about things that exist. It is the same in every run, so
that a change is judged by what it changed; `make search` sends other things, and more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from stateroom.testing.process import ServerProcess
from stateroom.wire.openapi.document import document
from tests.acceptance.modelhost import ModelHost
from tests.acceptance.wire import get, post

MORE: Final = int(os.environ.get("EXAMPLES", "100"))
EXAMPLES: Final = {"invalid": MORE // 12, "valid": MORE // 12, "about things that exist": MORE // 8}
SEQUENCES, STEPS = MORE // 10, 8
SECONDS: Final = 20
DOCUMENT: Final = document("0")
BOUNDS: Final = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
MODEL_S_FAULT: Final = {"invalid_output", "tool_choice_not_honoured"}
"""Errors with a 502 that are right: the model did not do what it was told, and a scripted one cannot."""


def places(mode: str) -> Iterator[str]:
    for path, held in DOCUMENT["paths"].items():
        for method, operation in held.items():
            query = [each for each in operation.get("parameters", ()) if each["in"] == "query"]
            # A text in a path or a header is always a text: nothing can be wrong with it.
            if (
                mode != "invalid"
                or "requestBody" in operation
                or any(each["schema"] != {"type": "string"} for each in query)
            ):
                yield f"{method.upper()} {path}"


def no_server_error(ctx: Any, answer: Any, case: Any) -> bool | None:
    """`not_a_server_error`, but for what is the model's fault."""
    if answer.status_code == 502 and answer.json()["error"]["code"] in MODEL_S_FAULT:
        return None
    return not_a_server_error(ctx, answer, case)


CHECKS: Final = [
    no_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    allow_header_conformance,
]


@cache
def described() -> Any:
    schemathesis.serializer.alias("application/x-tar", "application/octet-stream")
    return schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def server(model_host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One of its own: it is left in disorder."""
    folder = tmp_path_factory.mktemp("fuzzed")
    file = folder / "stateroom.toml"
    file.write_text(f'[embeddings]\nembedded = false\nurl = "{model_host.url}"\nmodels = ["scripted"]\n')
    with ServerProcess(folder / "data", backends=(model_host.url,), options=("--config", str(file))) as process:
        yield process
        assert process.status is None, process.output


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def things(url: str) -> dict[str, str]:
    """One of each kind, by the parameter that names it."""
    conversation = post(url, "/conversations", {"items": [{"role": "user", "content": "say: yes"}]})
    items = get(url, f"/conversations/{conversation['id']}/items")
    chat = {"model": "scripted", "messages": [{"role": "user", "content": "say: yes"}], "store": True}
    upload = {"bytes": 4, "filename": "a", "mime_type": "text/plain", "purpose": "user_data"}
    files = {"file": ("a.txt", b"hello")}
    file = requests.post(f"{url}/files", files=files, data={"purpose": "user_data"}, timeout=SECONDS)
    skill = {"files": ("SKILL.md", b"---\nname: a\ndescription: b\n---\n")}
    hooks = get(url, "/webhook_endpoints")["data"]
    hook = {"name": "a", "url": "https://nobody.invalid/", "event_types": ["response.completed"]}
    return {
        "response_id": post(url, "/responses", {"model": "scripted", "input": "say: yes", "background": True})["id"],
        "conversation_id": conversation["id"],
        "item_id": items["data"][0]["id"],
        "completion_id": post(url, "/chat/completions", chat)["id"],
        "file_id": file.json()["id"],
        "upload_id": post(url, "/uploads", upload)["id"],
        "skill_id": requests.post(f"{url}/skills", files=skill, timeout=SECONDS).json()["id"],
        "version": "1",
        "webhook_endpoint_id": (hooks[0] if hooks else post(url, "/webhook_endpoints", hook))["id"],
        "model": "scripted",
    }


def about(case: Any, things: dict[str, str]) -> None:
    """Have a valid request be about things that exist, so that it comes further than to their absence."""
    case.path_parameters = {name: things.get(name, value) for name, value in (case.path_parameters or {}).items()}
    case.query = {name: value for name, value in (case.query or {}).items() if name not in ("after", "before")}
    body = case.body
    if not isinstance(body, dict):
        return
    for name, thing in (("previous_response_id", "response_id"), ("conversation", "conversation_id")):
        if body.get(name):
            body[name] = things[thing]
    if body.get("conversation") or body.get("background"):
        body.pop("store", None)
    if body.get("conversation"):
        body.pop("previous_response_id", None)
    if not body.get("stream"):
        body.pop("stream_options", None)
    if case.path.startswith("/v1/responses"):
        body["input"] = body.get("input") or "say: yes"


@pytest.mark.parametrize(("mode", "place"), [(mode, place) for mode in EXAMPLES for place in places(mode)])
def test_every_answer_is_one_that_the_document_knows(
    server: ServerProcess, session: requests.Session, mode: str, place: str
) -> None:
    method, path = place.split(" ")
    generation = GenerationMode.NEGATIVE if mode == "invalid" else GenerationMode.POSITIVE
    root = server.url.removesuffix("/v1")
    existing = things(server.url) if mode == "about things that exist" else {}

    @settings(max_examples=EXAMPLES[mode], **BOUNDS)
    @given(case=described()[path][method].as_strategy(generation_mode=generation))
    def ask(case: Any) -> None:
        if existing:
            about(case, existing)
        case.call_and_validate(base_url=root, session=session, checks=CHECKS, timeout=SECONDS)

    ask()


def test_every_answer_to_a_sequence_of_requests_is_one_that_the_document_knows(
    server: ServerProcess, session: requests.Session
) -> None:
    """What one request makes, the next ones are about, as the links of the document have it."""
    root = server.url.removesuffix("/v1")

    class Machine(described().as_state_machine()):  # type: ignore[misc]  # made from the document
        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"base_url": root, "session": session, "timeout": SECONDS}

        def validate_response(self, response: Any, case: Any, *args: Any, **options: Any) -> None:
            case.validate_response(response, checks=CHECKS)

    Machine.run(settings=settings(max_examples=SEQUENCES, stateful_step_count=STEPS, **BOUNDS))
