"""What the files of a data directory are called."""

from __future__ import annotations

from typing import Final

JOURNAL: Final = "journal.db"
BLOBS: Final = "blobs"
SECRET: Final = "secret.key"  # noqa: S105  # the name of the file, not the secret
MANIFEST: Final = "backup.json"
"""Only a backup has it: what it holds, written when everything else was."""
