"""The OpenAPI document names every route and no other, is a valid one, and its page needs nothing but itself."""

from __future__ import annotations

import ast
import base64
import hashlib
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import closing
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from starlette.routing import BaseRoute, Mount, Route

from stateroom.access.keys import FILE, open_keys
from stateroom.access.principal import SCOPES
from stateroom.api.docs_page import policy, render
from stateroom.app import Application
from stateroom.errors import Forbidden
from stateroom.settings import BackendSettings, Settings
from stateroom.wire.openapi.codes import CODES
from stateroom.wire.openapi.document import document
from tests.unit.api.driver import HOST, call

DOCUMENT = document("1.2.3")
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, held in DOCUMENT["paths"].items()
    for method, operation in held.items()
}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[Application]:
    settings = Settings(data=str(tmp_path), backends=(BackendSettings(url="http://127.0.0.1:9/v1"),))
    application = Application(settings)
    yield application
    await application.stop()


def routes_of(routes: Iterable[BaseRoute], above: str = "") -> Iterator[str]:
    for route in routes:
        if isinstance(route, Mount):
            yield from routes_of(route.routes, above + route.path)
            continue
        assert isinstance(route, Route), f"{route} is of a kind that nobody has thought of here"
        for method in set(route.methods or ()) - {"HEAD"}:
            yield f"{method} {above}{re.sub(r':[a-z]+}', '}', route.path)}"


def within(value: Any) -> Iterator[dict[str, Any]]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from within(inner)


def found(pointer: str) -> Any:
    value: Any = DOCUMENT
    for step in pointer.removeprefix("#/").split("/"):
        value = value[step]
    return value


async def test_the_document_has_every_route_and_no_other(app: Application) -> None:
    assert sorted(OPERATIONS) == sorted(routes_of(app.routes))


async def test_the_document_says_which_scope_a_key_needs(app: Application) -> None:
    with closing(open_keys(Path(app.settings.data) / FILE)) as keys:
        secrets = {scope: keys.create(project="p", name="", scopes=(scope,))[1] for scope in SCOPES}
    for place, operation in OPERATIONS.items():
        method, path = place.split(" ")
        admitted = set()
        for scope, secret in secrets.items():
            try:
                app.gate.refresh()
                app.gate.admit(method, path, f"Bearer {secret}".encode())
            except Forbidden:
                continue
            admitted.add(scope)
        said = operation["x-stateroom-scope"]
        assert admitted == (set(SCOPES) if said == "none" else {said}), place
        assert (operation.get("security") == []) == (said == "none")


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    references = {held["$ref"] for held in within(DOCUMENT) if isinstance(held.get("$ref"), str)}
    for reference in references:
        found(reference)
    named = {
        f"#/components/{kind}/{name}"
        for kind in ("schemas", "responses", "headers")
        for name in found(f"#/components/{kind}")
    }
    assert named - references == set()


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_every_component_is_a_valid_schema(name: str) -> None:
    schema = DOCUMENT["components"]["schemas"][name]
    jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


def test_operations_have_ids_of_their_own_and_tags_that_exist() -> None:
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(ids)) == len(ids)
    assert {tag for operation in OPERATIONS.values() for tag in operation["tags"]} == {
        tag["name"] for tag in DOCUMENT["tags"]
    }


@pytest.mark.parametrize("place", OPERATIONS)
def test_an_operation_is_whole(place: str) -> None:
    operation = OPERATIONS[place]
    declared = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
    assert declared == set(re.findall(r"{(\w+)}", place))
    assert operation["summary"]
    assert operation["summary"][0].isupper()
    assert not operation["summary"].endswith(".")
    assert {"400", "403", "500"} <= operation["responses"].keys()
    for sample in operation.get("x-codeSamples", ()):
        ast.parse(sample["source"])


@pytest.mark.parametrize("place", [place for place, operation in OPERATIONS.items() if "requestBody" in operation])
def test_the_examples_of_a_body_fit_its_schema(place: str) -> None:
    for content in OPERATIONS[place]["requestBody"]["content"].values():
        validator = jsonschema_rs.validator_for({**content["schema"], "components": DOCUMENT["components"]})
        for example in content.get("examples", {}).values():
            validator.validate(example["value"])


def test_the_error_shape_lists_the_stable_codes() -> None:
    listed = found("#/components/schemas/ErrorBody")["properties"]["code"]["x-extensible-enum"]
    assert {"conversation_locked", "backend_timeout", "rate_limit_exceeded"} <= set(listed)
    assert listed == [code for codes in CODES.values() for code in codes]


async def test_the_document_is_served_as_it_is(app: Application) -> None:
    first, again = [await call(app.asgi, "GET", "/openapi.json") for _ in range(2)]
    assert first.status == 200
    assert first.headers["content-type"] == "application/json"
    assert first.json == {**DOCUMENT, "info": {**DOCUMENT["info"], "version": version("stateroom")}}
    assert first.body == again.body


def test_a_server_does_not_pay_for_the_document_at_its_start(tmp_path: Path) -> None:
    code = "import sys, stateroom.app; print([n for n in sys.modules if 'openapi.' in n or 'docs_' in n])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"


async def test_no_key_is_needed_to_read_it(tmp_path: Path) -> None:
    settings = Settings(data=str(tmp_path), host="0.0.0.0", backends=(BackendSettings(url="http://127.0.0.1:9/v1"),))
    application = Application(settings)
    for path, status in {"/openapi.json": 200, "/docs": 200, "/v1/models": 401}.items():
        assert (await call(application.asgi, "GET", path, headers=[HOST])).status == status
    await application.stop()


class Loads(HTMLParser):
    """What a page would fetch, where its links lead, its ids, and what of it runs or is styled in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.in_place: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset") or (tag == "link" and name == "href"):
                self.fetched.append(str(value))
            elif name == "href":
                self.links.append(str(value))
            elif name == "id":
                self.ids.append(str(value))
            elif name == "style" or name.startswith("on"):
                self.in_place.append(f"{tag} {name}")


async def test_the_page_shows_every_operation_and_fetches_nothing(app: Application) -> None:
    answer = await call(app.asgi, "GET", "/docs")
    assert answer.headers["content-type"].startswith("text/html")
    page = answer.body.decode()
    loads = Loads()
    loads.feed(page)
    assert loads.fetched == []
    assert loads.in_place == []
    assert {operation["operationId"] for operation in OPERATIONS.values()} <= set(loads.ids)
    assert {f"schema-{name}" for name in DOCUMENT["components"]["schemas"]} <= set(loads.ids)
    assert len(set(loads.ids)) == len(loads.ids)
    assert {link for link in loads.links if link[1:] not in loads.ids} == {"openapi.json"}
    assert set(re.findall(r"https?://[\w.]+", page)) == {"http://127.0.0.1", "https://example.com"}


async def test_the_policy_of_the_page_allows_its_own_style_and_script_alone(app: Application) -> None:
    answer = await call(app.asgi, "GET", "/docs")
    page = answer.body.decode()
    said = answer.headers["content-security-policy"]
    assert said == policy()
    for tag in ("style", "script"):
        (held,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(held.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in said
    assert "default-src 'none'" in said
    assert "unsafe" not in said


def test_what_the_document_says_is_text_and_no_markup() -> None:
    hostile = {
        **DOCUMENT,
        "info": {**DOCUMENT["info"], "description": "<script>alert(1)</script> `<b>`"},
        "components": {**DOCUMENT["components"], "schemas": {"<i>": {"type": "object", "description": "<img src=x>"}}},
    }
    page = render(hostile).decode()
    assert "<script>alert" not in page
    assert "<img" not in page
    assert "<i>" not in page
    assert "<code>&lt;b&gt;</code>" in page
