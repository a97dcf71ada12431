-- When runs ended, and which streams are kept: what a retention asks about. Both are derived.

-- Milliseconds since the epoch; null while it is open.
ALTER TABLE runs ADD COLUMN ended_at INTEGER;

UPDATE runs SET ended_at = (
  SELECT e.at FROM places p JOIN entries e ON e.id = p.entry
  WHERE p.place = runs.place - (runs.place & 0xffffffff) + runs.ended
) WHERE ended IS NOT NULL;

CREATE INDEX runs_by_end ON runs (project, ended_at) WHERE ended_at IS NOT NULL;

CREATE INDEX sealed_kept ON sealed (id, run) WHERE last >= 0;
