"""The examinations of `stateroom doctor`: each starts one part of the server for real and reports a finding.

None of them changes what the server keeps: an existing journal is read, not opened for writing. Imports of the parts
stand in the functions, so that a part that does not load is a finding and not the end of the doctor.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from stateroom.cli.client import Client
from stateroom.cli.configuration import Loaded
from stateroom.cli.failure import CommandFailed
from stateroom.cli.serve import refuse_open_bind
from stateroom.errors import BackendError, DirectoryInUse, StateroomError
from stateroom.journal.lock import lock_directory

if TYPE_CHECKING:
    from stateroom.models.backend import Backend, ModelCall
    from stateroom.models.embedded import EngineReport
    from stateroom.settings import Settings

LEAST_PYTHON = (3, 11)
LOW_DISK_BYTES = 1024**3
NO_DISK_BYTES = 64 * 1024**2
BACKEND_SECONDS = 120.0
READY_SECONDS = 2.0
PACKAGES = ("aiohttp", "apsw", "cryptography", "httptools", "jsonschema_rs", "msgspec", "starlette", "uvicorn")


class Finding(msgspec.Struct):
    """What one examination found."""

    part: str
    state: Literal["ok", "warning", "failed", "skipped"]
    detail: str
    remedy: str = ""
    seconds: float = 0.0


Examine: TypeAlias = Callable[[], Finding]


def ok(detail: str) -> Finding:
    return Finding("", "ok", detail)


def warning(detail: str, remedy: str) -> Finding:
    return Finding("", "warning", detail, remedy)


def failed(detail: str, remedy: str) -> Finding:
    return Finding("", "failed", detail, remedy)


def skipped(detail: str) -> Finding:
    return Finding("", "skipped", detail)


def examinations(loaded: Loaded, progress: Callable[[str], None]) -> list[tuple[str, Examine]]:
    """All examinations with the names of their parts, in the order they are to be made."""
    settings = loaded.settings
    parts: list[tuple[str, Examine]] = [
        ("python", python),
        ("packages", packages),
        ("settings", lambda: sources(loaded)),
        ("address", lambda: address(settings)),
        ("data directory", lambda: directory(settings)),
        ("disk", lambda: disk(settings)),
        ("journal", lambda: journal(settings)),
        ("durability", lambda: durability(settings)),
    ]
    if settings.backends:
        parts += [(f"backend {at + 1}", _backend(settings, at)) for at in range(len(settings.backends))]
        if settings.default_model:
            parts.append(("default model", lambda: asyncio.run(_default_model(settings))))
    else:
        parts += [("weights", lambda: weights(settings, progress)), ("embedded model", lambda: engine(settings))]
    from stateroom.cli import examine_workspaces  # here: it is made of what stands in this file

    parts += examine_workspaces.parts(settings)
    parts.append(("running server", lambda: running(settings)))
    return [(name, _guarded(examine)) for name, examine in parts]


def _guarded(examine: Examine) -> Examine:
    def guarded() -> Finding:
        try:
            return examine()
        except StateroomError as error:
            return failed(f"{error.message} ({error.code})", "")
        except CommandFailed as failure:
            return failed(failure.message, failure.remedy)
        except Exception as error:  # a broken part must not keep the others from being examined
            return failed(f"{type(error).__name__}: {error}", "This is unexpected: please report it.")

    return guarded


def python() -> Finding:
    detail = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if sys.version_info < LEAST_PYTHON:
        return failed(detail, "Install Python 3.11 or newer.")
    return ok(detail)


def packages() -> Finding:
    names = PACKAGES if sys.platform == "win32" else (*PACKAGES, "uvloop")
    found, broken = [], []
    for name in names:
        try:
            __import__(name)
            found.append(f"{name} {version(name.replace('_', '-'))}")
        except (ImportError, OSError, PackageNotFoundError) as error:
            broken.append(f"{name}: {error}")
    if broken:
        return failed("\n".join(broken), f"{Path(sys.executable).name} -m pip install --force-reinstall stateroom")
    return ok(f"{len(found)} load: {', '.join(found)}")


def sources(loaded: Loaded) -> Finding:
    if not loaded.sources:
        return ok("the defaults; no file, no variables, no options")
    found = sorted(loaded.sources.items())
    return ok("\n".join(f"{key} from {origin.removesuffix(f': {key}')}" for key, origin in found))


def address(settings: Settings) -> Finding:
    from stateroom.serving import bind

    refuse_open_bind(settings)
    where = f"{settings.host}:{settings.port}"
    try:
        bind(settings.host, settings.port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE and _server_answers(settings):
            return ok(f"{where} is held by a running Stateroom")
        if error.errno == errno.EADDRINUSE:
            return failed(f"{where} is in use by another program", "Stop it, or choose another port with --port.")
        return failed(f"{where}: {error.strerror or error}", "Choose another address with --host or --port.")
    return ok(f"{where} is free")


def directory(settings: Settings) -> Finding:
    path = Path(settings.data).resolve()
    if not path.exists():
        parent = _existing(path)
        if not os.access(parent, os.W_OK | os.X_OK):
            return failed(f"{path} is missing and cannot be made in {parent}", "Choose another one with --data.")
        return ok(f"{path} will be made at the first start")
    try:
        with tempfile.TemporaryFile(dir=path) as probe:
            probe.write(b"probe")
    except OSError as error:
        return failed(f"{path} cannot be written: {error.strerror}", "Mend its owner or rights, or choose another.")
    try:
        lock_directory(path).release()
    except DirectoryInUse as error:
        if _server_answers(settings):
            return ok(f"{path} is in use by the running server")
        return failed(error.message, "Stop that server, or choose another directory with --data.")
    return ok(f"{path} is writable and nobody else uses it")


def disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(_existing(Path(settings.data).resolve())).free
    detail = f"{free / 1024**3:.1f} GiB free"
    if free < NO_DISK_BYTES:
        return failed(detail, "Make room: the server refuses requests when the disk is full.")
    return warning(detail, "Make room soon.") if free < LOW_DISK_BYTES else ok(detail)


def journal(settings: Settings) -> Finding:
    from stateroom.journal.layout import JOURNAL
    from stateroom.journal.migrations import check_header
    from stateroom.journal.sqlite_check import check_file
    from stateroom.journal.statements import read_migrations

    path = Path(settings.data) / JOURNAL
    if not path.exists():
        return ok("none yet; one is made at the first start")
    check_header(path, len(read_migrations()))
    began = time.monotonic()
    damage = check_file(path)
    if damage:
        return failed("\n".join(damage), "Stop the server and restore the data directory from a backup.")
    size = path.stat().st_size / 1024**2
    return ok(f"{size:.1f} MiB, every page and branch checked in {time.monotonic() - began:.2f} s")


def durability(settings: Settings) -> Finding:
    where = _existing(Path(settings.data).resolve())
    with tempfile.TemporaryDirectory(dir=where, prefix=".doctor-") as folder:
        milliseconds = asyncio.run(_commit_milliseconds(Path(folder), settings))
    promise = "kill -9 and power loss" if settings.durability == "full" else "kill -9, not power loss"
    return ok(f"{settings.durability}: survives {promise}; a commit takes {milliseconds:.2f} ms here")


async def _commit_milliseconds(folder: Path, settings: Settings) -> float:
    """The median commit of a new journal in this folder."""
    from stateroom.journal.entries import Kind
    from stateroom.journal.sqlite import open_sqlite
    from stateroom.journal.store import Append, Branch, Draft

    commits = 20
    store = open_sqlite(folder / "journal.db", durability=settings.durability)
    taken = []
    try:
        branch = Branch("doctor", "doctor")
        for number in range(commits):
            draft = Draft(Kind.ERASED, b"", 0)
            began = time.perf_counter()
            create = branch if number == 0 else None
            await store.append(Append("doctor", "doctor", expected=number - 1, entries=[draft], create=create))
            taken.append(time.perf_counter() - began)
    finally:
        await store.close()
    return sorted(taken)[commits // 2] * 1000


def _backend(settings: Settings, at: int) -> Examine:
    def examine() -> Finding:
        from stateroom.building import build_backends

        one = msgspec.structs.replace(settings, backends=settings.backends[at : at + 1])
        return asyncio.run(_speak(build_backends(one, None)[0], settings.backends[at].url))

    return examine


def weights(settings: Settings, progress: Callable[[str], None]) -> Finding:
    from stateroom.models.weights import cache_directory, ensure_weights, weights_status

    folder = cache_directory(settings.embedded.cache_dir)
    before = weights_status(folder)
    if before.state == "ready":
        return ok(f"{before.path}: {before.size / 1e6:.0f} MB, every byte checked")
    path = ensure_weights(folder, lambda done, total: progress(f"weights: {done / 1e6:.0f} of {total / 1e6:.0f} MB"))
    return ok(f"{path}: were {before.state}, fetched and checked now")


def engine(settings: Settings) -> Finding:
    from stateroom.models.embedded import probe
    from stateroom.models.weights import cache_directory, weights_status

    if weights_status(cache_directory(settings.embedded.cache_dir)).state != "ready":
        return skipped("its weights are not there")

    async def within_bounds() -> EngineReport:
        async with asyncio.timeout(BACKEND_SECONDS):
            return await probe(settings.embedded)

    try:
        report = asyncio.run(within_bounds())
    except TimeoutError:
        return failed(f"it did not answer within {BACKEND_SECONDS:.0f} s", "Is the machine busy? Try again later.")
    took = f"started in {report.start_seconds:.1f} s, first token {report.first_token_seconds:.1f} s later"
    threads = f"{report.threads} {'thread' if report.threads == 1 else 'threads'}"
    memory = "" if report.resident_mib is None else f", {report.resident_mib:.0f} MiB"
    return ok(f"{report.model} {took}; {threads}{memory}")


async def _default_model(settings: Settings) -> Finding:
    """Whether any backend serves the model that stands in for unknown names."""
    from stateroom.building import build_backends

    served: list[str] = []
    backends = build_backends(settings, None)
    try:
        async with asyncio.timeout(BACKEND_SECONDS):
            for backend in backends:
                with contextlib.suppress(BackendError):  # it has a finding of its own
                    served += [model.id for model in await backend.models()]
    except TimeoutError:
        return skipped("a backend does not say what it serves")
    finally:
        await asyncio.gather(*(backend.close() for backend in backends))
    if settings.default_model in served:
        return ok(f"{settings.default_model} answers for unknown model names")
    if not served:
        return skipped("no backend says what it serves")
    names = ", ".join(served[:4]) + (" …" if len(served) > 4 else "")
    return failed(f"no backend serves {settings.default_model}", f"Set `default_model` to one of these: {names}.")


async def _speak(backend: Backend, where: str) -> Finding:
    """Ask a backend for its models and one token."""
    from stateroom.models.dialects import dialect_of

    try:
        async with asyncio.timeout(BACKEND_SECONDS):
            models = await backend.models()
            if not models:
                return failed(f"{where} is up and serves no model", "Load a model there.")
            began = time.monotonic()
            text = await _first_text(backend, models[0].id)
            spoken = f" in {dialect}" if (dialect := dialect_of(backend)) else ""
    except TimeoutError:
        return failed(f"{where} did not answer within {BACKEND_SECONDS:.0f} s", "Look at its own log.")
    except BackendError as error:
        said = error.message if where in error.message else f"{where}: {error.message}"
        return failed(said, _backend_remedy(error.code, where))
    finally:
        await backend.close()
    names = ", ".join(model.id for model in models[:4]) + (" …" if len(models) > 4 else "")
    return ok(f"{where} serves {names}; said {text!r}{spoken} after {time.monotonic() - began:.2f} s")


async def _first_text(backend: Backend, model: str) -> str:
    from stateroom.models.backend import TextDelta

    said = ""
    async for batch in backend.generate(_probe(model)):
        said += "".join(delta.text for delta in batch if isinstance(delta, TextDelta))
    return said


def _probe(model: str) -> ModelCall:
    from stateroom.models.backend import ContextItem, ModelCall

    question = {"role": "user", "content": "Say hello."}
    return ModelCall(model, [ContextItem("msg_doctor", question)], {}, temperature=0.0, max_output_tokens=16)


def _backend_remedy(code: str, where: str) -> str:
    if code == "backend_auth_failed":
        return "Name the variable that holds its key: --backend-key-env NAME, or key_env in the file."
    if not where.endswith("/v1"):
        return f"Is its base URL perhaps {where}/v1?"
    return "Start it, or mend its URL. If it wants a key, name the variable that holds it: --backend-key-env."


def running(settings: Settings) -> Finding:
    if not _server_answers(settings):
        return skipped("none at this address; start one with `stateroom serve`")
    client = Client(_url(settings))
    models = client.call("GET", "/models")["data"]
    names = ", ".join(model["id"] for model in models[:4])
    return ok(f"{client.url} is ready and serves {names}" if names else f"{client.url} is ready")


def _server_answers(settings: Settings) -> bool:
    """Whether a Stateroom is ready at the configured address."""
    if not settings.port:
        return False
    try:
        client = Client(_url(settings).removesuffix("/v1"), answer_seconds=READY_SECONDS)
        answer = client.call("GET", "/ready")
    except CommandFailed:
        return False
    return isinstance(answer, dict) and answer.get("status") == "ready"


def _url(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}/v1"


def _existing(path: Path) -> Path:
    """The path itself or its nearest ancestor that exists."""
    while not path.exists():
        path = path.parent
    return path
