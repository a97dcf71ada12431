"""What a verification found: what is damaged, where, and what to do about it."""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

SHOWN_MAX: Final = 50
"""Findings of one part that are told one by one; the rest are counted."""

RESTORE: Final = "Restore the data directory from a backup: `stateroom restore`."
REBUILD: Final = "Stop the server and run `stateroom rebuild`."


class Finding(msgspec.Struct, frozen=True):
    """Something that is not as it was written."""

    part: str
    """file, branch, entry, stream, index, blob, content, key or backup."""
    where: str
    problem: str
    advice: str


class Report(msgspec.Struct):
    """What was looked at, and what was wrong with it."""

    data: str
    ok: bool = True
    findings: list[Finding] = []
    untold: dict[str, int] = {}
    """How many findings of a part are left out, because there are too many."""
    counts: dict[str, int] = {}
    """How much was looked at."""
    notes: list[str] = []
    """What is no damage and worth knowing."""

    def add(self, part: str, where: str, problem: str, advice: str = RESTORE) -> None:
        """Take in a finding."""
        self.ok = False
        if sum(finding.part == part for finding in self.findings) < SHOWN_MAX:
            self.findings.append(Finding(part, where, problem, advice))
        else:
            self.untold[part] = self.untold.get(part, 0) + 1

    def found(self) -> Counter[str]:
        """How many findings each part has."""
        return Counter(finding.part for finding in self.findings) + Counter(self.untold)
