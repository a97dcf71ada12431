"""What an operator may set: frozen records, read once from a TOML file, the environment and the command line.

Precedence, highest first: command line, `STATEROOM_*` environment, file, the defaults below. Every field is described
in docs/reference/settings.md, which a test holds against this file. Only app.py and cli/ read settings.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, TypeAlias

import msgspec

PROJECT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PROJECT_RULE: Final = "it has up to 64 letters, digits, dots, dashes and underscores, and begins with a letter or digit"

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
    dialect: Literal["chat", "responses", "auto"] = "chat"
    """What it is asked in. auto: Responses if it has them, found out by one empty request, else chat completions."""
    models: tuple[str, ...] = ()
    """Model names it serves; asked of the server when empty."""
    embedding_models: tuple[str, ...] = ()
    """Models of it that make embeddings. Those that it lists itself are found by name without this."""
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
    file_bytes: Count = 512 * 1024 * 1024
    """One file of `/v1/files`."""
    upload_bytes: Count = 8 * 1024 * 1024 * 1024
    """One file that comes in parts, by `/v1/uploads`."""
    upload_part_bytes: Count = 64 * 1024 * 1024
    """One of these parts."""
    file_input_bytes: Count = 32 * 1024 * 1024
    """One file that a model is to read, as it is: by id, by URL or in the request."""
    file_text_bytes: Count = 4 * 1024 * 1024
    """The text of one of them."""
    file_pages: Count = 2_000
    """Pages of a PDF that a model is to read."""
    file_inputs: Count = 64
    """Files of one request that have to be turned into text; those that were before do not count."""
    file_seconds: Seconds = 30.0
    """Turning the files of one request into text; also downloading one of them, redirects included."""
    skill_bytes: Count = 50 * 1024 * 1024
    """One skill as it is sent: a zip, or its files together."""
    skill_files: Count = 500
    """Files of a skill."""
    skill_file_bytes: Count = 25 * 1024 * 1024
    """One of them, unpacked."""
    skill_unpacked_bytes: Count = 200 * 1024 * 1024
    """All of them."""
    skill_ratio: Count = 200
    """How many times as large as its zip a skill may be when it is unpacked; below 1 MiB it does not matter."""
    skill_versions: Count = 1_000
    """Versions of one skill."""
    skill_cache_bytes: Count = 1024 * 1024 * 1024
    """Unpacked skills that are kept for the next sandbox; those that are in use stay in any case."""
    import_bytes: Count = 1024 * 1024 * 1024
    """One file of `/v1/conversations/import`."""
    export_history_bytes: Count = 64 * 1024 * 1024
    """What was said in a conversation or chain that is exported or imported, without its images and files."""
    connections: Count = 4_096
    """Connections at the same time; beyond it 503."""
    socket_seconds: Seconds = 3600.0
    """How long a WebSocket may be open; what goes on then may end."""
    socket_context_bytes: Count = 64 * 1024 * 1024
    """Memory for unstored responses that one WebSocket may continue; all together have `cached_context_bytes`."""
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
    embedding_inputs: Count = 2_048
    """Inputs of one request for embeddings."""
    embedding_input_bytes: Count = 256 * 1024
    """One of them; of a list of tokens, four bytes each."""
    completion_choices: Count = 128
    """Answers that one request to `/v1/completions` may ask for: its prompts, times `n`."""
    batches: Count = 64
    """Batches of one project that are not finished; beyond it 429."""
    batch_lines: Count = 50_000
    """Requests of one batch."""
    batch_bytes: Count = 200 * 1024 * 1024
    """Its input file."""
    batch_concurrency: Count = 16
    """Requests of all batches that are answered at the same time; other runs take these places away, down to one."""


class RetentionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a project keeps things: `[project.retention]` for each of them, `[projects.NAME.retention]` for one."""

    responses_days: SecondsOrNone = 0.0
    """Responses and chat completions, counted from their end. Those of conversations stay with these. 0: for ever."""
    frames_hours: SecondsOrNone = 0.0
    """Streams of responses, to be read again, from the response's end. The response itself stays. 0: as long as it."""
    files_days: SecondsOrNone = 0.0
    """Files, from their upload; one's own `expires_after` may be earlier. 0: for ever."""
    containers_days: SecondsOrNone = 0.0
    """Containers with their files, from their last use. 0: for ever."""


class ProjectSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What holds for a project: `[project]` for each of them, `[projects.NAME]` what differs for one."""

    requests_per_minute: CountOrNone = 0
    """Requests to the API; beyond it 429. 0: as many as one likes."""
    tokens_per_minute: CountOrNone = 0
    """Tokens that its runs read and write; what a run used is counted at its end. 0: as many as one likes."""
    runs: CountOrNone = 0
    """Runs at the same time; beyond it 429. 0: as many as the server takes (`limits.runs`)."""
    retention: RetentionSettings = RetentionSettings()


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


class EmbeddingsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who makes embeddings, beside the backends."""

    url: str = ""
    """Base URL with version of a server for embeddings alone; one that chats, too, is named in `[[backends]]`."""
    key_env: str = ""
    """Name of the environment variable that holds its API key."""
    models: tuple[str, ...] = ()
    """Model names it serves; asked of the server when empty."""
    embedded: bool = True
    """Offer the embedded embedding model, which is started with the first request for it."""
    default_model: str = ""
    """Serves unknown names; empty: the first of the server's, of the backends' `embedding_models`, the embedded one."""


class WorkspaceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where hosted tools (shell, code interpreter, ...) work."""

    driver: Literal["auto", "bubblewrap", "landlock", "docker", "podman", "none"] = "auto"
    """What keeps their processes in. auto: bubblewrap, or landlock where that cannot work. none: no hosted tools."""
    unsafe: bool = False
    """Run them with no isolation at all where nothing isolates: they can then read and do whatever the server can."""
    image: str = ""
    """Container image, for `docker` and `podman`."""
    python: str = ""
    """Python for the code interpreter and for what a shell calls `python3`; empty: the system's, else the server's."""
    live: Count = 32
    """Workspaces with processes at the same time; the one idle for longest makes room for the next."""
    idle_minutes: Seconds = 20.0
    """How long processes stay when nobody asks for them, unless the container says otherwise. Files stay."""
    folders: CountOrNone = 128
    """Directories of workspaces without processes that are kept at hand; others come back from the content store."""
    commits: CountOrNone = 0
    """Commits that a container keeps; the oldest go first, and nothing continues from them. 0: all."""
    memory_bytes: Count = 1024 * 1024 * 1024
    """Memory of a workspace whose container names none; `memory_limit` may ask for up to `memory_bytes_max`."""
    memory_bytes_max: Count = 4 * 1024 * 1024 * 1024
    """More than this is not given, whatever `memory_limit` says."""
    disk_bytes: Count = 4 * 1024 * 1024 * 1024
    """Files of one workspace."""
    files: Count = 100_000
    """How many of them."""
    processes: Count = 256
    """Processes and threads of one workspace."""
    command_seconds: Seconds = 120.0
    """How long a command or cell may take that names no limit."""
    command_seconds_max: Seconds = 1800.0
    """How long one may take at all."""
    output_bytes: Count = 1024 * 1024
    """Output of one cell, or of the commands of one call, that is kept; of what is longer the middle is left out."""
    state_bytes: Count = 256 * 1024 * 1024
    """Variables of an interpreter that are kept."""
    state_seconds: Seconds = 2.0
    """How long keeping them may take."""
    egress_domains: tuple[str, ...] = ("*",)
    """Domains that a container's allow-list may name at all; `*` for all of them, `*.example.com` for those below."""


class McpSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How MCP servers that clients name are called."""

    connect_seconds: Seconds = 15.0
    """Longest wait for a connection and the handshake on it."""
    list_seconds: Seconds = 30.0
    """Longest wait for the list of a server's tools."""
    call_seconds: Seconds = 120.0
    """Longest wait for what comes of a call, unless the client's `timeout_seconds` says otherwise."""
    call_seconds_max: Seconds = 600.0
    """More than this is not given."""
    idle_seconds: Seconds = 60.0
    """How long a connection that nobody uses is kept."""
    connections: Count = 64
    """Connections at the same time; the one idle for longest makes room for the next."""
    response_bytes: Count = 8 * 1024 * 1024
    """Size of one answer. Of one event of the older SSE transport: 1 MiB at most."""
    output_bytes: Count = 256 * 1024
    """What the model is told of it; the middle of what is longer is left out."""
    tools: Count = 256
    """Tools of one server."""
    schemas_bytes: Count = 1024 * 1024
    """Their names, descriptions and schemas together."""


class PolicyRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One rule of `[[policy]]`: the first that matches a hosted tool call decides."""

    decision: Literal["allow", "ask", "deny"]
    """ask: the call waits for an approval of the client."""
    tool: str = "*"
    """Tool, with `*` for anything: `shell`, `code_interpreter`, `apply_patch`, `mcp.LABEL.NAME`."""
    arguments: str = ""
    """Regular expression that is searched for in the call's arguments, or one of its commands; empty: any."""
    project: str = "*"
    """For whose calls, with `*` for anything."""
    reason: str = ""
    """Told to the model and the client."""


class TelemetrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Traces, for OpenTelemetry. They need the extra `otel`."""

    otlp_endpoint: str = ""
    """Base URL of a collector that takes OTLP over HTTP, such as `http://collector:4318`. Empty: as `OTEL_*` say."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the command line and the top of the file set."""

    host: str = "127.0.0.1"
    """Address to listen on. One that other machines reach asks for a key, and for one to be there."""
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
    cors_origins: tuple[str, ...] = ()
    """Web pages that may use the server, such as `https://app.example`; `*` for all, as soon as there are keys."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged, on standard error. Never the content of requests."""
    log_format: Literal["text", "json"] = "text"
    """Lines to read, or one JSON object a line."""
    access_log: Literal["all", "errors", "none"] = "all"
    """Which requests have a line in the log: method, route, status, time, ids."""
    limits: Limits = Limits()
    project: ProjectSettings = ProjectSettings()
    projects: dict[str, ProjectSettings] = {}
    embedded: EmbeddedSettings = EmbeddedSettings()
    embeddings: EmbeddingsSettings = EmbeddingsSettings()
    workspaces: WorkspaceSettings = WorkspaceSettings()
    mcp: McpSettings = McpSettings()
    policy: tuple[PolicyRule, ...] = ()
    telemetry: TelemetrySettings = TelemetrySettings()
