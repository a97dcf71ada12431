"""Starts the Python interpreter of a workspace, inside its sandbox: `python interpreter.py CLOUDPICKLE KERNEL`.

Frames come by stdin and go by stdout; see `kernel/`. Both are directories, and neither is put on the path: a cell's
`import` finds what the workspace has and nothing of ours. Without the second, the kernel is beside this file.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys


def main() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    directory = sys.argv[2] if len(sys.argv) > 2 else os.path.join(here, "kernel")
    spec = importlib.util.spec_from_file_location(
        "_stateroom", os.path.join(directory, "__init__.py"), submodule_search_locations=[directory]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["_stateroom"] = package
    spec.loader.exec_module(package)
    sys.path[0] = ""  # it was this directory
    importlib.import_module("_stateroom.start").main(sys.argv[1] if len(sys.argv) > 1 else "")


if __name__ == "__main__":
    main()
