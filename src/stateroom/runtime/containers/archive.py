"""What a commit holds as a tar archive, for whoever takes it away: made as it is sent, never whole in memory."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from stateroom.runtime.ranges import part_of
from stateroom.wire.tar import END, padding
from stateroom.workspaces.content.store import ContentStore, TreeEntry


class Archive:
    """One of them."""

    def __init__(self, content: ContentStore, name: str, tree: str, entries: Sequence[TreeEntry]) -> None:
        self._content = content
        self._entries = entries
        self.name = name
        self.tree = tree
        """The same for the same bytes."""
        self.size = sum(len(_head(entry)) + _length(entry) for entry in entries) + len(END)

    def read(self, first: int = 0, last: int | None = None) -> AsyncGenerator[bytes, None]:
        """Its bytes from `first` to `last` (inclusive; None: the end). Raises StorageError when one is gone."""
        return part_of(self._pieces(), first, last, self.size)

    async def _pieces(self) -> AsyncGenerator[bytes, None]:
        for entry in self._entries:
            yield _head(entry)
            if entry.kind == "file":
                async with aclosing(self._content.read(entry.digest)) as pieces:
                    async for piece in pieces:
                        yield piece
                yield padding(entry.size)
        yield END


def _length(entry: TreeEntry) -> int:
    return entry.size + len(padding(entry.size)) if entry.kind == "file" else 0


def _head(entry: TreeEntry) -> bytes:
    """What stands in front of a file's bytes."""
    import tarfile  # lazy: it loads the compressions, and few take everything away

    member = tarfile.TarInfo(entry.path)
    member.mode = entry.mode
    member.mtime = max(0, entry.mtime_ns // 1_000_000_000)
    if entry.kind == "directory":
        member.type = tarfile.DIRTYPE
    elif entry.kind == "symlink":
        member.type, member.linkname = tarfile.SYMTYPE, entry.target
    else:
        member.size = entry.size
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
