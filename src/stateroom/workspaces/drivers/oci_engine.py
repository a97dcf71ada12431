"""The command line of a container engine: asking it something, and starting a container whose agent we speak to."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Final

from stateroom.errors import SandboxFailed

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 10.0
_ASK_SECONDS: Final = 30.0
_SAID_BYTES: Final = 2_000
_ADVICE: Final = ("--help' for more information", "--help'")
"""How engines end a complaint, after what it is about."""


class Engine:
    """The command line of Docker or Podman. Everything here blocks."""

    def __init__(self, program: str) -> None:
        self.program = program

    def ask(self, *words: str) -> str:
        """What it prints. Raises SandboxFailed."""
        try:
            done = subprocess.run(  # noqa: S603  # the engine that the operator named
                [self.program, *words],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_ASK_SECONDS,
                check=False,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise SandboxFailed(f"{self.program} does not answer: {error}") from error
        if done.returncode:
            raise SandboxFailed(f"`{self.program} {words[0]}` failed: {_last_line(done.stderr)}")
        return done.stdout.strip()

    def run(self, words: Sequence[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
        """A container, once its agent has said its first word. Raises SandboxFailed, OSError."""
        said = os.memfd_create("stateroom", os.MFD_CLOEXEC)
        ours, theirs = socket.socketpair()
        try:
            # When memory runs out, Podman's monitor leaves a file where it was started: not in the caller's directory.
            with tempfile.TemporaryDirectory(prefix="stateroom-engine-") as aside:
                with theirs:  # closed here before we wait, so that an engine that ends is noticed at once
                    process = subprocess.Popen(  # noqa: S603  # as above
                        [self.program, "run", *words],
                        stdin=theirs.fileno(),
                        stdout=theirs.fileno(),
                        stderr=said,
                        start_new_session=True,
                        cwd=aside,
                    )
                if select.select([ours], [], [], _START_SECONDS)[0] and ours.recv(1, socket.MSG_PEEK):
                    return process, ours
            ours.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_SECONDS)
            process.kill()
            reason = _last_line(os.pread(said, _SAID_BYTES, 0).decode("utf-8", "replace"))
            raise SandboxFailed(f"the container could not be started: {reason}")
        except OSError:
            ours.close()
            theirs.close()
            raise
        finally:
            os.close(said)


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip() and not line.rstrip(".").endswith(_ADVICE)]
    return lines[-1][:500] if lines else "it said nothing"
