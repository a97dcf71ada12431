"""One target under the coverage-guided fuzzer, in a process of its own: the name comes in the environment.

Nothing of Stateroom may be loaded before the fuzzer is there to instrument it.
"""

from __future__ import annotations

import os
import sys

TARGET = "STATEROOM_FUZZ_TARGET"


def main() -> None:
    import atheris  # it rewrites what is loaded after it

    with atheris.instrument_imports(include=["stateroom.wire", "stateroom.models", "stateroom.journal"]):
        from tests.fuzz.targets import TARGETS

    atheris.Setup(sys.argv, TARGETS[os.environ[TARGET]])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
