"""Files of a container that an answer names: where in the text, and which."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from stateroom.errors import RequestError
from stateroom.wire.containers import container_file_id

CITED_MAX: Final = 64
"""Files that one text cites."""
_PATH: Final = re.compile(r"(?:sandbox:)?/(?:mnt/data|workspace)/([^\s()<>\[\]{}\"'`*|]+)")
_TRAILING: Final = ".,;:!?"


class Folder(Protocol):
    """What is needed of a workspace's files."""

    def stat(self, path: str) -> Any: ...


def citations(text: str, folders: Mapping[str, Folder]) -> list[dict[str, Any]]:
    """An annotation for each place where the text names a file that is in one of these containers, by their ids."""
    found: list[dict[str, Any]] = []
    for match in _PATH.finditer(text):
        path = match.group(1).rstrip(_TRAILING)
        container_id = next((each for each, folder in folders.items() if _is_file(folder, path)), "")
        if not container_id:
            continue
        end = match.end() - (len(match.group(1)) - len(path))
        found.append(
            {
                "type": "container_file_citation",
                "container_id": container_id,
                "file_id": container_file_id(container_id, path),
                "filename": path.rpartition("/")[2],
                "start_index": match.start(),
                "end_index": end,
            }
        )
        if len(found) == CITED_MAX:
            break
    return found


def citing(folders: Mapping[str, Folder]) -> Callable[[str], list[dict[str, Any]]] | None:
    """The same for texts that are still to come; None where there is nothing to cite."""
    return (lambda text: citations(text, folders)) if folders else None


def _is_file(folder: Folder, path: str) -> bool:
    try:
        return bool(folder.stat(path).kind == "file")
    except RequestError:
        return False
