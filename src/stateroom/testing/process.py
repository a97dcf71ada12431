"""A real server in a process of its own: started, killed, stopped in its tracks, started again on the same data."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_URL = re.compile(r"URL\s+(http://\S+/v1)")
_LISTENING = re.compile(r"listening on (http://\S+)")


class ProcessFailed(RuntimeError):
    """The process did not come up; the message holds what it printed."""


class ServerProcess:
    """`stateroom serve`, or another module that prints a banner with a URL."""

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
    ) -> None:
        self.data = data
        self.port = port
        self.url = ""
        """Base URL with version, once it is started."""
        self._backends = backends
        self._options = options
        self._environment = environment or {}
        self._module = module
        self.log = log or data.with_name(data.name + ".log")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 30.0) -> Self:
        """Start it and wait for its banner. Raises ProcessFailed."""
        backends = [word for url in self._backends for word in ("--backend", url)]
        command = [
            *(sys.executable, "-m", self._module, "serve", "--port", str(self.port), "--data", str(self.data)),
            *backends,
            *self._options,
        ]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **self._environment}
        with self.log.open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        found = _wait_for(_URL, self.log, begin, self.process, seconds)
        self.url = found
        self.port = int(found.split(":")[2].split("/")[0])
        return self

    @property
    def pid(self) -> int:
        assert self.process is not None, "not started"
        return self.process.pid

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
    """The scripted model server in a process of its own."""

    def __init__(self, *options: str, log: Path) -> None:
        self._options = options
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        """Base URL with version."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "stateroom.testing.scripted", *(self._options or ("--port", "0"))]
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
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def _wait_for(pattern: re.Pattern[str], log: Path, begin: int, process: subprocess.Popen[bytes], seconds: float) -> str:
    deadline = time.monotonic() + seconds
    while True:
        with log.open("rb") as file:
            file.seek(begin)
            text = file.read().decode("utf-8", "replace")
        found = pattern.search(text)
        if found:
            return found.group(1)
        if process.poll() is not None:
            raise ProcessFailed(f"It exited with status {process.returncode}:\n{text[-4000:]}")
        if time.monotonic() > deadline:
            process.kill()
            raise ProcessFailed(f"It was not up after {seconds:g} seconds:\n{text[-4000:]}")
        time.sleep(0.01)
