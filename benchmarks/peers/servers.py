"""A peer's server as a process: started on a port, waited for, stopped, killed with all below it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, Self

from benchmarks.dialogues import LoadFailed
from benchmarks.measure import Cores

START_SECONDS: Final = 90.0
_STOP_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.02
_KEPT: Final = ("PATH", "LANG", "LC_ALL", "SSL_CERT_FILE")


class Running(Protocol):
    """A server that listens, ours or a peer's."""

    port: int
    began: float

    @property
    def pid(self) -> int: ...

    def stop(self) -> None: ...

    def kill(self) -> None:
        """kill -9."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class PeerServer:
    """It is there once its health check answers. It gets no more of our environment than it needs."""

    def __init__(
        self, cores: Cores, command: Sequence[str], environment: Mapping[str, str], port: int, health: str, log: Path
    ) -> None:
        self.port = port
        self._log = log
        own = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self.began = time.perf_counter()
        with cores.of_server(), log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**own, **environment},
                start_new_session=True,
            )
        try:
            self._wait(health)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait(self, health: str) -> None:
        while time.perf_counter() - self.began < START_SECONDS:
            if self._process.poll() is not None:
                break
            if _answers(self.port, health):
                return
            time.sleep(_POLL_SECONDS)
        last = "\n".join(self._log.read_text(errors="replace").splitlines()[-15:])
        raise LoadFailed(f"it did not start:\n{last}")

    def _end(self, number: signal.Signals) -> None:
        """To all its processes at once: the group is its own."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _answers(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
