"""Who is measured, and how each is configured: its own production settings, as far as they are the same for all.

For all: one process, plain HTTP on the loopback interface, no keys, as little of a log as can be set, SQLite where
there is state. Where a setting is not a peer's own default, the line says why.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any, Final, Protocol

import msgspec

from benchmarks.dialogues import Surface
from benchmarks.measure import Cores
from benchmarks.model import MODELS
from benchmarks.peers.environments import Environment
from benchmarks.peers.servers import PeerServer, Running, free_port
from benchmarks.processes import ModelServer, Server


class Contender(Protocol):
    """A server that is measured."""

    @property
    def name(self) -> str: ...

    @property
    def told(self) -> str:
        """Its version and how it is run, in a line."""
        ...

    @property
    def surface(self) -> Surface:
        """How a client carries on a dialogue with it."""
        ...

    @property
    def prefix(self) -> str:
        """What it puts before a model's name."""
        ...

    def start(self, data: Path) -> Running:
        """On this data directory, which need not be there. Raises LoadFailed."""
        ...


class Stateroom:
    """Ours."""

    name: Final = "Stateroom"
    surface: Final[Surface] = "response"
    prefix: Final = ""

    def __init__(self, cores: Cores, models: ModelServer) -> None:
        self._cores = cores
        self._models = models

    @property
    def told(self) -> str:
        return f"{version('stateroom')} on Python {python_version()}; SQLite"

    def start(self, data: Path) -> Running:
        return Server(self._cores, data, self._models.port)


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """How a peer is installed and run."""

    name: str
    package: str
    requirement: str
    least_python: tuple[int, int]
    surface: Surface
    prefix: str
    told: str
    health: str
    configuration: Callable[[Path, str], dict[str, Any]]
    """From the data directory and the model server's base URL."""
    command: Callable[[Environment, Path, int], list[str]]
    """From its configuration's file and the port."""
    environment: dict[str, str]


class Peer:
    """Another's, installed."""

    def __init__(self, recipe: Recipe, environment: Environment, cores: Cores, models: ModelServer) -> None:
        self._recipe = recipe
        self._environment = environment
        self._cores = cores
        self._models = models

    @property
    def name(self) -> str:
        return self._recipe.name

    @property
    def told(self) -> str:
        return f"{self._environment.version} on Python {self._environment.python}; {self._recipe.told}"

    @property
    def surface(self) -> Surface:
        return self._recipe.surface

    @property
    def prefix(self) -> str:
        return self._recipe.prefix

    def start(self, data: Path) -> Running:
        data.mkdir(exist_ok=True)
        configuration = data.with_suffix(".yaml")
        # JSON is YAML.
        configuration.write_bytes(
            msgspec.json.encode(self._recipe.configuration(data, f"http://127.0.0.1:{self._models.port}/v1"))
        )
        port = free_port()
        return PeerServer(
            self._cores,
            self._recipe.command(self._environment, configuration, port),
            # Whatever it keeps at home counts as its disk; what it leaves in TMPDIR goes away with the run.
            {"HOME": str(data), "TMPDIR": str(data.parent), **self._recipe.environment},
            port,
            self._recipe.health,
            data.with_suffix(".log"),
        )


def _ogx_configuration(data: Path, models: str) -> dict[str, Any]:
    """Of its `starter` distribution what serves responses; the providers of files, search and vectors are left out."""
    responses = {"table_name": "responses", "backend": "sql", "max_write_queue_size": 10_000, "num_writers": 4}
    completions = {**responses, "table_name": "inference_store", "enabled": True}
    files = {"storage_dir": str(data / "files"), "metadata_store": {"table_name": "files", "backend": "sql"}}
    return {
        "version": 2,
        "distro_name": "benchmark",
        "apis": ["conversations", "files", "inference", "responses", "tool_runtime", "vector_io"],
        "providers": {
            "inference": [_provider("models", "remote::openai", {"base_url": models, "api_key": "none"})],
            "responses": [_provider("builtin", "inline::builtin", {"persistence": {"responses": responses}})],
            "files": [_provider("files", "inline::localfs", files)],
            "tool_runtime": [],
            "vector_io": [],
        },
        "storage": {
            "backends": {
                "kv": {"type": "kv_sqlite", "db_path": str(data / "kvstore.db")},
                "sql": {"type": "sql_sqlite", "db_path": str(data / "sql_store.db")},
            },
            "stores": {
                "metadata": {"namespace": "registry", "backend": "kv"},
                "inference": completions,
                "conversations": {"table_name": "openai_conversations", "backend": "sql"},
                "prompts": {"table_name": "prompts", "backend": "sql"},
                "connectors": {"table_name": "connectors", "backend": "sql"},
            },
        },
        "server": {"host": "127.0.0.1", "workers": 1},
    }


def _provider(name: str, kind: str, configuration: dict[str, Any]) -> dict[str, Any]:
    return {"provider_id": name, "provider_type": kind, "config": configuration}


OGX: Final = Recipe(
    name="OGX",
    package="ogx",
    requirement="ogx>=1.5",
    least_python=(3, 12),
    surface="response",
    prefix="models/",
    told="SQLite, as in its starter distribution",
    health="/v1/health",
    configuration=_ogx_configuration,
    # Without --insecure it asks for certificates.
    command=lambda environment, configuration, port: [
        environment.program("ogx"),
        *("run", str(configuration), "--insecure", "--port", str(port)),
    ],
    # JSON is what its source calls the format for production. One line a request stays whatever the level.
    environment={"OGX_LOGGING": "all=error", "OGX_LOG_FORMAT": "json"},
)


def _litellm_configuration(data: Path, models: str) -> dict[str, Any]:
    """What its page on production asks for, less what needs a database, Redis or Slack."""
    return {
        "model_list": [
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"openai/{name}",
                    "api_base": models,
                    "api_key": "none",
                    # The model server speaks chat completions only, as most do.
                    "use_chat_completions_api": True,
                },
            }
            for name in MODELS
        ],
        "litellm_settings": {"request_timeout": 600, "set_verbose": False, "json_logs": True},
    }


LITELLM: Final = Recipe(
    name="LiteLLM",
    package="litellm",
    # Releases of this number and of 1.82.7 and 1.82.8 were reported to carry malware.
    requirement="litellm[proxy]>=1.100,!=1.107.*",
    least_python=(3, 11),
    surface="history",
    prefix="",
    told="proxy without a database, stateless: the client sends the whole history",
    health="/health/liveliness",
    configuration=_litellm_configuration,
    command=lambda environment, configuration, port: [
        environment.program("litellm"),
        *("--config", str(configuration), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"),
    ],
    environment={
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOG": "ERROR",
        # Without a key it does not start otherwise.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
        # Else its start waits for a file from the internet.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    },
)

RECIPES: Final = (OGX, LITELLM)
