"""The page at /docs, made from the OpenAPI document: one HTML file that needs no other, and hardly any script.

What it is made of is escaped, and its content security policy allows nothing but its own style and script by their
hashes: it asks no other server for anything, and works offline.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any, Final

import msgspec

from stateroom.api.docs_schema import Schema, body, bounds_of, kind, link, name_of, prose, without_nulls
from stateroom.wire.openapi.codes import CODES

_EXAMPLE_URL: Final = "http://127.0.0.1:8000"
"""Where the server is in examples; the page's script puts its own address there."""
_QUICK_START: Final = """from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="unused")
first = client.responses.create(model="default", input="What is the capital of France?")
second = client.responses.create(model="default", input="And of Japan?", previous_response_id=first.id)
print(second.output_text)"""
_SCOPES: Final = {"none": "no key", "read": "read", "write": "write", "admin": "admin"}


def render(document: dict[str, Any]) -> bytes:
    """The whole page."""
    tags = [tag["name"] for tag in document["tags"]]
    grouped: dict[str, list[tuple[str, str, dict[str, Any]]]] = {tag: [] for tag in tags}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            grouped[operation["tags"][0]].append((method.upper(), path, operation))
    sections = "".join(_section(tag, grouped[tag["name"]], document) for tag in document["tags"])
    schemas = "".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items())
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Stateroom API</title>
<style>{_asset("docs_page.css")}</style>
</head>
<body>
<a class="skip" href="#main">To the content</a>
<nav aria-label="Operations">
<header><a class="brand" href="#main">Stateroom <small>{escape(document["info"]["version"])}</small></a>
<button id="theme" type="button" hidden>Theme</button></header>
<input id="search" type="search" placeholder="Search  ( / )" aria-label="Search" autocomplete="off" hidden>
{"".join(_menu(tag, grouped[tag]) for tag in tags)}
<section><h2><a href="#errors">Errors</a></h2></section>
<section><h2><a href="#schemas">Schemas</a></h2></section>
<p id="nothing" hidden>Nothing found.</p>
</nav>
<main id="main">
{_introduction(document)}
{sections}
<section id="errors"><h2>Errors</h2>{_errors(document)}</section>
<section id="schemas"><h2>Schemas</h2>{schemas}</section>
</main>
<script>{_asset("docs_page.js")}</script>
</body>
</html>
"""
    return page.encode()


def policy() -> str:
    """The content security policy that the page needs, and nothing more."""
    style, script = (_hash(_asset(name)) for name in ("docs_page.css", "docs_page.js"))
    return (
        f"default-src 'none'; style-src '{style}'; script-src '{script}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _asset(name: str) -> str:
    return (files("stateroom.api") / name).read_text("utf-8").strip()


def _introduction(document: dict[str, Any]) -> str:
    return f"""<section id="introduction">
<h1>Stateroom API</h1>
<p>{prose(document["info"]["description"])}</p>
<p>This page is made from <a href="openapi.json">openapi.json</a>, which generators of clients read.</p>
<h3>With the openai package</h3>
{_code(_QUICK_START)}
<h3>With curl</h3>
{_code(_curl("GET", "/v1/models", None))}
<p>Where the server asks for keys, send one as <code>Authorization: Bearer sk-stateroom-…</code>.</p>
</section>"""


def _menu(tag: str, operations: list[tuple[str, str, dict[str, Any]]]) -> str:
    entries = "".join(
        f'<li data-find="{escape(_words(method, path, operation))}"><a href="#{operation["operationId"]}">'
        f"{_badge(method)}<span>{escape(operation['summary'])}</span></a></li>"
        for method, path, operation in operations
    )
    return f'<section><h2><a href="#{_anchor(tag)}">{escape(tag)}</a></h2><ul>{entries}</ul></section>'


def _words(method: str, path: str, operation: dict[str, Any]) -> str:
    """What an operation is found by."""
    return f"{method} {path} {operation['summary']} {operation['operationId']} {operation['tags'][0]}".lower()


def _anchor(tag: str) -> str:
    return "tag-" + tag.lower().replace(" ", "-")


def _badge(method: str) -> str:
    return f'<b class="method {method.lower()}">{method}</b>'


def _section(tag: dict[str, str], operations: list[tuple[str, str, dict[str, Any]]], document: dict[str, Any]) -> str:
    articles = "".join(_operation(method, path, operation, document) for method, path, operation in operations)
    head = f"<h2>{escape(tag['name'])}</h2><p>{prose(tag['description'])}</p>"
    return f'<section id="{_anchor(tag["name"])}" class="tag">{head}{articles}</section>'


def _operation(method: str, path: str, operation: dict[str, Any], document: dict[str, Any]) -> str:
    extension = '<span class="extension">extension</span>' if operation.get("x-stateroom-extension") else ""
    scope = _SCOPES[operation["x-stateroom-scope"]]
    about = f"<p>{prose(operation['description'])}</p>" if "description" in operation else ""
    said = "".join(
        (
            *_parameters(operation, "path", "In the path"),
            *_parameters(operation, "query", "In the query"),
            *_request(operation, document),
            *_parameters(operation, "header", "Headers"),
            *_answers(operation, document),
        )
    )
    return f"""<article id="{operation["operationId"]}" data-find="{escape(_words(method, path, operation))}">
<h3><a href="#{operation["operationId"]}">{escape(operation["summary"])}</a>{extension}</h3>
<p class="place">{_badge(method)} <code>{escape(path)}</code> <span class="scope">key: {scope}</span></p>
{about}<div class="columns">
<div class="words">{said}</div>
<div class="samples">{_samples(method, path, operation)}</div>
</div>
</article>"""


def _parameters(operation: dict[str, Any], where: str, title: str) -> Iterator[str]:
    rows = "".join(_parameter(each) for each in operation.get("parameters", ()) if each["in"] == where)
    if rows:
        yield f'<h4>{title}</h4><dl class="fields">{rows}</dl>'


def _parameter(parameter: dict[str, Any]) -> str:
    schema: Schema = parameter["schema"]
    said = prose(parameter.get("description", ""))
    bounds = prose(", ".join(bounds_of(schema)))
    shown = f"<p>{said}</p>" + (f'<p class="bounds">{bounds}</p>' if bounds else "")
    required = '<span class="required">required</span>' if parameter["required"] else ""
    head = f'<code class="name">{escape(parameter["name"])}</code> <span class="kind">{kind(schema)}</span> {required}'
    return f"<dt>{head}</dt><dd>{shown}</dd>"


def _request(operation: dict[str, Any], document: dict[str, Any]) -> Iterator[str]:
    if "requestBody" in operation:
        optional = "" if operation["requestBody"]["required"] else ", may be left out"
        for media, content in operation["requestBody"]["content"].items():
            schema = without_nulls(_resolved(content["schema"], document))  # in bodies null means absent
            yield f"<h4>Body <small>{escape(media)}{optional}</small></h4>{body(schema)}"


def _answers(operation: dict[str, Any], document: dict[str, Any]) -> Iterator[str]:
    yield "<h4>Answers</h4><dl class='answers'>"
    errors = []
    for status, answer in operation["responses"].items():
        if "$ref" in answer:
            errors.append(status)
            continue
        held = "".join(
            f"<li><small>{escape(media)}</small> {_held(content['schema'])}</li>"
            for media, content in answer.get("content", {}).items()
        )
        yield f"<dt><b class='status'>{status}</b> {prose(answer['description'])}</dt><dd><ul>{held}</ul></dd>"
    shown = ", ".join(f'<abbr title="{escape(_meaning(each, document))}">{each}</abbr>' for each in errors)
    yield f"<dt><b class='status error'>errors</b> {shown}</dt><dd><ul><li>{link('Error')}</li></ul></dd></dl>"


def _held(schema: Schema) -> str:
    """What an answer holds; of a stream, each of its events."""
    data = schema.get("properties", {}).get("data", {}).get("anyOf", ())
    events = [each["contentSchema"] for each in data if "contentSchema" in each]
    return f"events: {kind(events[0])}" if events else kind(schema)


def _meaning(status: str, document: dict[str, Any]) -> str:
    return str(document["components"]["responses"][f"Error{status}"]["description"])


def _resolved(schema: Schema, document: dict[str, Any]) -> Schema:
    found: Schema = document["components"]["schemas"].get(name_of(schema), schema)
    return found


def _samples(method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"<h4>openai</h4>{_code(each['source'])}" for each in operation.get("x-codeSamples", ())]
    content = operation.get("requestBody", {}).get("content", {})
    examples = content.get("application/json", {}).get("examples", {})
    if "multipart/form-data" in content:
        parts.append(f"<h4>curl</h4>{_code(_curl_form(path))}")
    elif not examples:
        parts.append(f"<h4>curl</h4>{_code(_curl(method, path, None))}")
    for number, (name, example) in enumerate(examples.items()):
        code = _code(_curl(method, path, example["value"]))
        if number == 0:
            parts.append(f"<h4>curl</h4>{code}")
        else:
            parts.append(f"<details><summary>{escape(name)}</summary>{code}</details>")
    return "".join(parts)


def _curl(method: str, path: str, value: Any) -> str:
    words = ["curl", *(["-X", method] if method == "DELETE" or (method == "POST" and value is None) else [])]
    words.append(f"{_EXAMPLE_URL}{path}")
    if value is None:
        return " ".join(words)
    shown = msgspec.json.format(msgspec.json.encode(value), indent=2).decode().replace("'", "'\\''")
    return f"{' '.join(words)} \\\n  -H 'Content-Type: application/json' \\\n  -d '{shown}'"


def _curl_form(path: str) -> str:
    fields = "-F data=@part.bin" if path.endswith("/parts") else "-F purpose=user_data -F file=@notes.txt"
    return f"curl {_EXAMPLE_URL}{path} \\\n  {fields}"


def _code(text: str) -> str:
    return f"<pre><code>{escape(text)}</code></pre>"


def _errors(document: dict[str, Any]) -> str:
    rows = "".join(
        f"<dt>{escape(about)}</dt><dd>"
        + " ".join(f'<span class="code"><code>{code}</code> {escape(status)}</span>' for code, status in codes.items())
        + "</dd>"
        for about, codes in CODES.items()
    )
    meanings = "".join(
        f"<dt><b class='status error'>{name.removeprefix('Error')}</b></dt><dd>{prose(answer['description'])}</dd>"
        for name, answer in document["components"]["responses"].items()
    )
    return (
        f"<p>Every error has the same shape, {link('Error')}; its <code>code</code> is stable, its message is not.</p>"
        f'<dl class="meanings">{meanings}</dl><h3>Codes</h3><dl class="codes">{rows}</dl>'
    )


def _schema(name: str, schema: Schema) -> str:
    return (
        f'<details id="schema-{escape(name)}" class="schema"><summary>{escape(name)}</summary>{body(schema)}</details>'
    )
