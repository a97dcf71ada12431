"""What workspaces are asked for and answer: what one is to be, what a command left, what a commit holds."""

from __future__ import annotations

import asyncio
import codecs
import itertools
from collections.abc import Callable
from operator import itemgetter
from typing import Final, Literal, TypeAlias

import msgspec

from stateroom import ids
from stateroom.workspaces.channels.interpreter import CellResult
from stateroom.workspaces.channels.process import Finished, Job
from stateroom.workspaces.egress.policy import NetworkPolicy
from stateroom.workspaces.workspace import Mount

InterpreterState: TypeAlias = Literal["live", "restored", "partial", "fresh"]
Output: TypeAlias = Callable[[str, str], None]
"""Is told which stream, and what came on it."""
TOLD_SECONDS: Final = 0.03
"""Between two times that somebody is told what a command printed."""
_PIECES_MAX: Final = 16


class Commit(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a workspace held at one moment, in the content store."""

    id: str
    tree: str
    interpreter: str = ""
    """Digest of the variables of its interpreter; '': there were none, or they could not be kept."""
    files: int = 0
    bytes: int = 0
    new_bytes: int = 0
    """By which the content store grew."""
    skipped: bool = False
    """There were variables, and they could not be kept."""
    lost: dict[str, str] = {}
    """Variables that could not be kept, with their types."""
    left_out: int = 0
    """Files that could not be kept: too many, too large together, or none that are files."""
    left: tuple[str, ...] = ()
    """Commands that had left processes running, as `Jobs.left`."""


class WorkspaceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a workspace is to be."""

    id: str
    project: str
    memory_bytes: int
    idle_seconds: float
    """How long its processes stay when nobody asks for them."""
    mounts: tuple[Mount, ...] = ()
    network: NetworkPolicy | None = None
    """None: no network."""


class Executed(msgspec.Struct, frozen=True):
    """What came of a command."""

    stdout: str
    stderr: str
    exit_code: int | None
    """None: it was killed because its time was over."""
    timed_out: bool = False
    truncated: bool = False
    """Some of the middle of its output is left out."""
    background: tuple[str, ...] = ()
    """What it left running, in words."""
    restarted: bool = False
    """The sandbox had died since the last call and was started anew: files are as they were, processes are gone."""
    breach: str = ""
    """The limit for which processes of the workspace were ended meanwhile, in words."""


class Decoding:
    """Bytes of each stream as text, wherever their pieces end.

    What comes in haste is told together: a program that prints byte by byte must not make an event of each.
    """

    def __init__(self, tell: Output) -> None:
        self._tell = tell
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}
        self._gathered: list[tuple[str, str]] = []
        self._told_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, stream: str, data: bytes) -> None:
        decoder = self._decoders.get(stream)
        if decoder is None:
            decoder = self._decoders[stream] = codecs.getincrementaldecoder("utf-8")("replace")
        if text := decoder.decode(data):
            self._gathered.append((stream, text))
            loop = asyncio.get_running_loop()
            if loop.time() >= self._told_at + TOLD_SECONDS:
                self._tell_all()
            elif self._timer is None:
                self._timer = loop.call_at(self._told_at + TOLD_SECONDS, self._tell_all)

    def finish(self) -> None:
        for stream, decoder in self._decoders.items():
            if text := decoder.decode(b"", True):
                self._gathered.append((stream, text))
        self._tell_all()

    def _tell_all(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._told_at = asyncio.get_running_loop().time()
        if len(gathered) > _PIECES_MAX:  # what came first, the one stream or the other, is worth less than that
            gathered.sort(key=itemgetter(0))
        for stream, pieces in itertools.groupby(gathered, key=itemgetter(0)):
            self._tell(stream, "".join(text for _, text in pieces))


def new_commit_id() -> str:
    return ids.new_id("wsc")


def executed(finished: Finished, restarted: bool, breach: str) -> Executed:
    """What came of a command, in words."""
    job = finished.job
    background = () if job is None else (_in_words(job),)
    return Executed(
        stdout=finished.stdout.decode("utf-8", "replace"),
        stderr=finished.stderr.decode("utf-8", "replace"),
        exit_code=finished.code,
        timed_out=finished.code is None,
        truncated=bool(finished.dropped),
        background=background,
        restarted=restarted,
        breach=breach,
    )


def with_breach(result: CellResult, breach: str) -> CellResult:
    """The same, with the limit for which processes were ended meanwhile: the interpreter itself, or some of its own."""
    if not breach:
        return result
    told = "\n".join([part for part in (result.error, ended_for(breach)) if part])
    return msgspec.structs.replace(result, error=told)


def ended_for(breach: str) -> str:
    """What whoever works in a workspace is told of it."""
    return f"[processes of this environment were ended: {breach}]"


def _in_words(job: Job) -> str:
    pids = ", ".join(map(str, job.pids))
    output = f", its output goes to {job.log}" if job.log else ""
    return f"job {job.number} (process {pids}){output}" if pids else f"job {job.number}{output}"
