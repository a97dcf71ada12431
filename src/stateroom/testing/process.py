"""Real processes: a server or a model server that is started, killed, stopped in its tracks, and started again."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_URL = re.compile(r"URL\s+(http://\S+/v1)")
_LISTENING = re.compile(r"listening on (http://\S+)")
_PORTS: Final = range(18_000, 32_000)
_POLL_SECONDS: Final = 0.01


class ProcessFailed(RuntimeError):
    """The process did not come up; the message holds what it printed."""


class ServerProcess:
    """`stateroom serve`, or another module that prints a banner with a URL. It keeps its port through all its lives."""

    def __init__(
        self,
        data: Path,
        *,
        backends: tuple[str, ...] = (),
        port: int = 0,
        options: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        module: str = "stateroom.cli.main",
        log: Path | None = None,
        user: int | None = None,
        python: str = sys.executable,
    ) -> None:
        """`user`: whose process it is, and of which group; it takes root to have it another's."""
        self.data = data
        self._user = user
        self._python = python
        self.port = port
        self.url = ""
        """Base URL with version, once it is started."""
        self._backends = backends
        self._options = options
        self._environment = environment or {}
        self._module = module
        self.log = log or data.with_name(data.name + ".log")
        self.process: subprocess.Popen[bytes] | None = None
        self._begin = 0

    def start(self, seconds: float = 30.0, *, environment: Mapping[str, str] | None = None) -> Self:
        """Start it and wait for its banner. `environment` is for this life alone. Raises ProcessFailed."""
        self.spawn(environment=environment)
        return self.wait_ready(seconds)

    def spawn(self, *, environment: Mapping[str, str] | None = None) -> Self:
        """Start it and wait for nothing."""
        backends = [word for url in self._backends for word in ("--backend", url)]
        command = [
            *(self._python, "-m", self._module, "serve", "--port", str(self.port), "--data", str(self.data)),
            *backends,
            *self._options,
        ]
        own = {"PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **self._environment, **(environment or {})}
        with self.log.open("ab") as log:
            self._begin = log.tell()
            self.process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **own},
                start_new_session=True,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
            )
        return self

    def wait_ready(self, seconds: float = 30.0) -> Self:
        """Wait for the banner of a process that was spawned. Raises ProcessFailed."""
        assert self.process is not None, "not started"
        self.url = _wait_for(_URL, self.log, self._begin, self.process, seconds)
        self.port = int(self.url.split(":")[2].split("/")[0])
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None, "not started"
        return self.process.pid

    @property
    def status(self) -> int | None:
        """Its exit status (minus the signal that killed it), None while it runs."""
        assert self.process is not None, "not started"
        return self.process.poll()

    @property
    def output(self) -> str:
        """What it printed in this life."""
        with self.log.open("rb") as file:
            file.seek(self._begin)
            return file.read().decode("utf-8", "replace")

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self.process is not None, "not started"
        self.process.kill()
        self.process.wait()

    def terminate(self, seconds: float = 20.0) -> int:
        """SIGTERM; returns its exit status."""
        assert self.process is not None, "not started"
        self.process.terminate()
        return self.process.wait(seconds)

    def pause(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def wait(self, seconds: float = 20.0) -> int:
        """Wait for it to exit by itself; returns its exit status."""
        assert self.process is not None, "not started"
        return self.process.wait(seconds)

    def __enter__(self) -> Self:
        return self if self.process is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()


class ModelProcess:
    """The scripted model server in a process of its own. It keeps its port through all its lives."""

    def __init__(self, *options: str, log: Path) -> None:
        self._options = options
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self.url = ""
        """Base URL with version."""

    def start(self) -> Self:
        """Start it and wait until it listens. Raises ProcessFailed."""
        port = ("--port", str(self._port)) if self._port else ()
        command = [sys.executable, "-m", "stateroom.testing.scripted", *self._options, *port]
        with self._log.open("ab") as log:
            begin = log.tell()
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        self.url = _wait_for(_LISTENING, self._log, begin, self._process, 20.0).rstrip("/")
        if not self.url.endswith("/v1"):
            self.url += "/v1"
        self._port = int(self.url.split(":")[2].split("/")[0])
        return self

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        assert self._process is not None, "not started"
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self if self._process is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self.kill()


def quiet_port() -> int:
    """A free port that no outgoing connection is given: clients that knock at a dead server cannot take it."""
    while True:
        # Test processes that run side by side may have the same seed, and would choose the same ports.
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _wait_for(pattern: re.Pattern[str], log: Path, begin: int, process: subprocess.Popen[bytes], seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while True:
        ended = process.poll() is not None
        with log.open("rb") as file:
            file.seek(begin)
            text = file.read().decode("utf-8", "replace")
        found = pattern.search(text)
        if found and not ended:
            return found.group(1)
        if ended:
            raise ProcessFailed(f"It exited with status {process.returncode}:\n{text[-4000:]}")
        if time.monotonic() > deadline:
            process.kill()
            raise ProcessFailed(f"It was not up after {seconds:g} seconds:\n{text[-4000:]}")
        time.sleep(_POLL_SECONDS)
