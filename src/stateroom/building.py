"""Builds the parts of a server that come in kinds: model servers, embedders, and what workspaces are made of."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from stateroom.clock import Clock, SystemClock
from stateroom.models.backend import Backend
from stateroom.models.dialects import server_backend
from stateroom.models.embedding_models import EmbeddingModels, Source
from stateroom.models.embeddings import Embedder, OpenAIEmbedder
from stateroom.models.emulation import ToolEmulation
from stateroom.models.router import Router
from stateroom.settings import BackendSettings, Settings
from stateroom.telemetry.exposition import Read
from stateroom.telemetry.instruments import Instruments
from stateroom.telemetry.metrics import WorkspaceMeter
from stateroom.workspaces.content.store import ContentStore
from stateroom.workspaces.drivers.choice import choose_driver
from stateroom.workspaces.egress.proxy import EgressProxy
from stateroom.workspaces.layout import CONTENT, EGRESS, LIVE, kernel_files
from stateroom.workspaces.live.workspaces import Workspaces


def build_workspaces(
    settings: Settings, data: Path, content: ContentStore, clock: Clock, meter: WorkspaceMeter | None = None
) -> Workspaces:
    """The live set, over the driver that the settings ask for. Nothing is started."""
    wanted = settings.workspaces
    egress = EgressProxy(
        data.absolute() / EGRESS,
        egress_domains=wanted.egress_domains,
        allow_private=settings.allow_private_addresses,
        clock=clock,
    )
    driver, reason = choose_driver(settings.workspaces, data)
    mounts = kernel_files()
    return Workspaces(
        data / LIVE, content, driver, wanted, clock, egress=egress, reason=reason, mounts=mounts, meter=meter
    )


def workspace_readings(live: Workspaces) -> dict[str, Read]:
    """What `/metrics` says of workspaces beside what their meter has."""
    found: dict[str, Read] = {
        "stateroom_workspaces_live": lambda: live.count,
        "stateroom_content_bytes": lambda: live.content.size,
    }
    egress = live.egress
    if egress is None:
        return found
    return found | {
        "stateroom_egress_decisions": lambda: egress.decisions,
        "stateroom_egress_sent_bytes": lambda: egress.sent_bytes,
        "stateroom_egress_received_bytes": lambda: egress.received_bytes,
        "stateroom_egress_connections": lambda: egress.connections,
    }


def open_content(data: Path, settings: Settings) -> ContentStore:
    """The content store of a data directory, which is made where it is missing. Raises StorageError."""
    path, bounds = data / CONTENT, settings.workspaces
    path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    return ContentStore(
        path,
        durability=settings.durability,
        clock=SystemClock(),
        files_max=bounds.files,
        bytes_max=bounds.disk_bytes,
    )


def build_backends(
    settings: Settings, progress: Callable[[str], None] | None, instruments: Instruments | None = None
) -> list[Backend]:
    """The configured model servers, or the embedded engine when there are none."""
    if not settings.backends:
        from stateroom.models.embedded import EmbeddedBackend  # lazy: only a server without backends needs it

        embedded = EmbeddedBackend(settings.embedded, progress=progress, instruments=instruments)
        embedded.start()  # it loads in the background, while the rest starts
        return [embedded]
    return [_build_backend(each, instruments) for each in settings.backends]


def build_embeddings(settings: Settings, router: Router, instruments: Instruments | None = None) -> EmbeddingModels:
    """The server for embeddings, what the backends make of them, and the embedded model. None of them is started."""
    sources: list[Source] = []
    own = settings.embeddings
    if own.url:
        server = BackendSettings(url=own.url, name="embeddings", key_env=own.key_env, models=own.models)
        sources.append(Source(_build_embedder(server, instruments), own.models))
    backends: dict[str, Embedder] = {}
    for each in settings.backends:
        embedder = _build_embedder(each, instruments)
        backends.setdefault(embedder.name, embedder)
        if each.embedding_models:
            sources.append(Source(embedder, each.embedding_models))
    if own.embedded:
        from stateroom.models.embedded_minilm import EmbeddedEmbedder  # lazy: only a server that offers it needs it

        sources.append(Source(EmbeddedEmbedder(settings.embedded)))
    return EmbeddingModels(
        sources, router, backends, default_model=own.default_model, unknown_models=settings.unknown_models
    )


def _build_embedder(settings: BackendSettings, instruments: Instruments | None) -> Embedder:
    return OpenAIEmbedder(settings, os.environ.get(settings.key_env) if settings.key_env else None, instruments)


def _build_backend(settings: BackendSettings, instruments: Instruments | None) -> Backend:
    key = os.environ.get(settings.key_env) if settings.key_env else None
    backend = server_backend(settings, key, instruments)
    return ToolEmulation(backend) if settings.tools == "emulate" else backend
