"""The child process of the embedded engine: loads the model, serves it on a loopback port, ends with its parent.

Run as a script by `models.engine`, which writes one line of JSON with what to do to its standard input and reads one
line of JSON from its standard output. It imports nothing of Stateroom, and ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_HEADROOM = 2 * 1024**3
"""Memory that the engine may take beyond what it has after loading."""


def main() -> None:
    """Serve until standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent ends us when it has finished its runs
    told = json.loads(sys.stdin.buffer.readline())
    _die_with(told["parent"])
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever native code prints must not get between our lines
    try:
        started = _serve(told)
    except Exception as error:  # whatever it is, the parent has to hear of it
        started = (None, {"error": f"{type(error).__name__}: {error}"})
    print(json.dumps(started[1]), file=answer, flush=True)  # the answer
    if started[0] is not None:
        sys.stdin.buffer.read()
    os._exit(0 if started[0] is not None else 1)  # the engine's threads do not survive an orderly exit


def _die_with(parent: int) -> None:
    """Be killed when the parent dies, should it go without closing our standard input."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _serve(told: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    began = time.monotonic()
    import xllamacpp  # lazy: native code, loaded after the line to the parent is set up

    imported = time.monotonic()
    server = xllamacpp.Server(_parameters(xllamacpp, told))
    _bound_memory(told["cache_mib"] * 2**20 + _HEADROOM)
    return server, {
        "url": server.listening_address,
        "import_seconds": imported - began,
        "load_seconds": time.monotonic() - imported,
    }


def _bound_memory(more: int) -> None:
    """Rather die and be started again than take the machine's memory, should a request drive the engine astray."""
    with contextlib.suppress(OSError, ValueError):
        Path("/proc/self/oom_score_adj").write_text("500")
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + more, taken + more))


def _parameters(xllamacpp: Any, told: dict[str, Any]) -> Any:
    """Measured settings; docs/why/embedded-model.md has the figures."""
    wanted = xllamacpp.CommonParams()
    wanted.model.path = told["model"]
    wanted.model_alias = {told["alias"]}
    wanted.api_keys = [told["key"]]
    wanted.hostnames = ["127.0.0.1"]
    wanted.port = 0
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = told["threads"]
    wanted.n_threads_http = told["slots"] + 4
    wanted.n_parallel = told["slots"]
    wanted.n_ctx = told["context"] * told["slots"]
    # With a stream of its own, and values of another type than keys, a slot computes a token the same way whether it is
    # part of a prompt or was just generated, and whatever other slots do: greedy answers go on after a crash as they
    # were. Keys stay at 16 bits: with 8 this small model says nonsense.
    wanted.kv_unified = False
    wanted.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F16
    wanted.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_Q8_0
    wanted.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
    wanted.cache_ram_mib = told["cache_mib"]
    wanted.slot_prompt_similarity = 0.0  # else sessions with a common start overwrite each other's cache
    wanted.warmup = False
    wanted.ui = wanted.endpoint_slots = wanted.endpoint_props = wanted.endpoint_metrics = False
    wanted.verbosity = 0  # prompts are not to be in logs
    if told["embedding"]:
        _make_vectors(xllamacpp, wanted, told)
    return wanted


def _make_vectors(xllamacpp: Any, wanted: Any, told: dict[str, Any]) -> None:
    """An encoder: no cache of keys and values, and a text has to fit into one batch whole."""
    wanted.embedding = True
    wanted.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    wanted.n_batch = wanted.n_ubatch = told["context"]
    wanted.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F16


if __name__ == "__main__":
    main()
