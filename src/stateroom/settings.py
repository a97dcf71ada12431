"""What an operator may set: frozen records, read once from a TOML file, the environment and the command line.

Precedence, highest first: command line, `STATEROOM_*` environment, file, the defaults below. Every field is described
in docs/reference/settings.md, which a test holds against this file. Only app.py and cli/ read settings.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
CountOrNone: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]
SecondsOrNone: TypeAlias = Annotated[float, msgspec.Meta(ge=0)]
Port: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=65535)]


class BackendSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model server."""

    url: str
    """Base URL with version, such as http://host:9001/v1."""
    name: str = ""
    """Shown in logs and errors; the URL's host and port when empty."""
    key_env: str = ""
    """Name of the environment variable that holds its API key."""
    dialect: Literal["chat"] = "chat"
    models: tuple[str, ...] = ()
    """Model names it serves; asked of the server when empty."""
    tools: Literal["native", "emulate"] = "native"
    """emulate: tool calls are obtained by schema-forced output, for models without tool support."""
    prefill: Literal["none", "assistant", "continue_final_message"] = "none"
    """How it continues a given text: a trailing assistant message (llama.cpp), or vLLM's extra fields."""
    reasoning_field: Literal["auto", "none", "reasoning", "reasoning_content"] = "auto"
    """Under which name earlier reasoning is sent back; auto: the one it used itself."""
    connect_timeout_seconds: Seconds = 5.0
    """Longest wait for a connection."""
    first_byte_timeout_seconds: Seconds = 300.0
    """Longest wait for the first byte of an answer."""
    idle_timeout_seconds: Seconds = 60.0
    """Longest silence between two chunks of a stream."""
    retries: CountOrNone = 2
    """Further tries before the first token, with exponential backoff."""
    concurrency: Count = 256
    """Requests to it at the same time."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds on what a caller may ask; passing one is a clear 400, 413 or 429."""

    body_bytes: Count = 32 * 1024 * 1024
    """A request's body."""
    items: Count = 10_000
    """Items in one request."""
    depth: Count = 64
    """Nesting of JSON."""
    tools: Count = 1_024
    """Tools of one request."""
    content_parts: Count = 2_048
    """Content parts of one item."""
    item_bytes: Count = 24 * 1024 * 1024
    """JSON of one item."""
    context_items: Count = 100_000
    """Items that one model call may see."""
    image_bytes: Count = 20 * 1024 * 1024
    """One image."""
    image_downloads: Count = 64
    """Images that one request names by URL; together they may be as large as a body."""
    image_timeout_seconds: Seconds = 20.0
    """Downloading one image, redirects included."""
    runs: Count = 256
    """Runs at the same time."""
    waiting_runs: Count = 1_024
    """Runs that wait for a place; beyond it 429."""
    conversation_queue: CountOrNone = 8
    """Writers that wait for one conversation; beyond it `conversation_locked`."""
    conversation_wait_seconds: SecondsOrNone = 30.0
    """How long they wait; then the same."""
    steps: Count = 64
    """Model calls of one run."""
    output_bytes: Count = 16 * 1024 * 1024
    """Text of one model answer; it is cut off there, or at 500,000 pieces or 4,096 calls, as by a limit of tokens."""
    cached_context_bytes: Count = 256 * 1024 * 1024
    """Memory for the folded state of active branches."""


class EmbeddedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The embedded smoke-test model."""

    threads: CountOrNone = 0
    """0: one less than the cores, at least one."""
    slots: Count = 2
    """Answers that it generates at the same time."""
    context_tokens: Count = 8192
    """For each slot."""
    cache_dir: str = ""
    """Where the weights are kept; empty: `$XDG_CACHE_HOME/stateroom` or `~/.cache/stateroom`."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the command line and the top of the file set."""

    host: str = "127.0.0.1"
    """Address to listen on; a loopback one, as long as there are no access keys."""
    port: Port = 8000
    """0: any free one."""
    data: str = "./stateroom-data"
    """Data directory: journal, blobs, secret key. One server at a time."""
    durability: Literal["normal", "full"] = "normal"
    """normal: survives kill -9. full: survives power loss too (an fsync for each commit)."""
    backends: tuple[BackendSettings, ...] = ()
    """Empty: the embedded model."""
    default_model: str = ""
    """Serves unknown model names; empty: the first model of the first backend."""
    unknown_models: Literal["default", "reject"] = "default"
    """Whether unknown model names go to the default model or are a 404."""
    allow_private_addresses: bool = False
    """Let users' URLs (images) reach private, loopback and link-local addresses."""
    shutdown_seconds: SecondsOrNone = 10.0
    """How long SIGTERM waits for runs to finish before it parks them."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged, on standard error. Never the content of requests."""
    log_format: Literal["text", "json"] = "text"
    """Lines to read, or one JSON object a line."""
    limits: Limits = Limits()
    embedded: EmbeddedSettings = EmbeddedSettings()
