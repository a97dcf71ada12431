"""The three processes of a measurement: the server, the model server behind it, and the load generator."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Final, Self

import msgspec

from benchmarks.dialogues import LoadFailed
from benchmarks.load import Order, Outcome
from benchmarks.measure import Cores, cpu_seconds

START_SECONDS: Final = 30.0
ROOT: Final = Path(__file__).resolve().parents[1]
_URL: Final = re.compile(r"http://127\.0\.0\.1:(\d+)")


class Process:
    """A child process that prints its URL, or takes orders, on its standard streams."""

    def __init__(self, command: Sequence[str], log: Path, folder: Path = ROOT) -> None:
        self.log = log
        env = {name: value for name, value in os.environ.items() if not name.startswith("STATEROOM_")}
        self.began = time.perf_counter()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                env={**env, "PYTHONUNBUFFERED": "1"},
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self.stdin: IO[bytes] = self._process.stdin
        self.stdout: IO[bytes] = self._process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def cpu(self) -> float:
        return cpu_seconds(self.pid)

    def wait_for_port(self) -> int:
        """The port in the URL that the process prints. Raises LoadFailed when it ends, or hangs, before that."""
        watchdog = threading.Timer(START_SECONDS, self._process.kill)
        watchdog.start()
        try:
            for line in self.stdout:
                if match := _URL.search(line.decode()):
                    return int(match.group(1))
        finally:
            watchdog.cancel()
        self._process.wait()
        raise LoadFailed(f"a process did not start ({self._process.args!r}):\n{self.last_words()}")

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            self._process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.stdin.close()
        self.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Server(Process):
    """`stateroom serve` on a data directory, pinned to its core. `port` is there once it listens."""

    def __init__(self, cores: Cores, data: Path, model_port: int) -> None:
        backend = f"http://127.0.0.1:{model_port}/v1"
        options = ["--host", "127.0.0.1", "--port", "0", "--data", str(data), "--backend", backend]
        with cores.of_server():
            super().__init__(["stateroom.cli.main", "serve", *options], data.with_suffix(".log"), data.parent)
        self.data = data
        self.port = self.wait_for_port()
        self.ready_seconds = time.perf_counter() - self.began
        self._reader = threading.Thread(target=self._drain, daemon=True)
        self._reader.start()

    def _drain(self) -> None:
        """A full pipe would hold the server up."""
        try:
            while self.stdout.read(65_536):
                pass
        except ValueError:
            return

    def _end(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)
            self._reader.join(START_SECONDS)
        super()._end(number)


class ModelServer(Process):
    """The model server of the benchmarks."""

    def __init__(self, folder: Path) -> None:
        super().__init__(["benchmarks.model"], folder / "model.log")
        self.port = self.wait_for_port()


class Loader(Process):
    """The load generator."""

    def __init__(self, folder: Path) -> None:
        super().__init__(["benchmarks.load"], folder / "load.log")

    def run(self, order: Order) -> Outcome:
        """Raises LoadFailed when the load met an error."""
        self.stdin.write(msgspec.json.encode(order) + b"\n")
        self.stdin.flush()
        line = self.stdout.readline()
        if not line:
            raise LoadFailed(f"the load generator ended:\n{self.last_words()}")
        outcome = msgspec.json.decode(line, type=Outcome)
        if outcome.error:
            raise LoadFailed(outcome.error)
        return outcome

    def stop(self) -> None:
        self.kill()
