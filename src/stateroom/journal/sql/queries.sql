-- Statements on the truth of the journal, each named, with what it is for.

-- name: read_generation
-- How often a server has opened this file; a store that remembers a smaller number is fenced.
SELECT value FROM meta WHERE name = 'generation';

-- name: raise_generation
-- Makes every lease and every store of before void.
UPDATE meta SET value = value + 1 WHERE name = 'generation';

-- name: find_project
-- The number of a project.
SELECT id FROM projects WHERE name = ?;

-- name: add_project
-- Gives a project its number.
INSERT INTO projects (name) VALUES (?) RETURNING id;

-- name: find_branch
-- What never changes about a branch: its number, project, parent and fork point.
SELECT b.id, p.name, b.parent, b.parent_seq FROM branches b JOIN projects p ON p.id = b.project WHERE b.name = ?;

-- name: find_branch_name
-- The name of a branch.
SELECT name FROM branches WHERE id = ?;

-- name: find_branch_by_id
-- The same for an ancestor, of which only the number is known.
SELECT b.parent, b.parent_seq FROM branches b WHERE b.id = ?;

-- name: read_branch
-- A branch as its readers see it.
SELECT b.name, p.name, coalesce(o.name, ''), b.parent_seq, b.head
FROM branches b JOIN projects p ON p.id = b.project LEFT JOIN branches o ON o.id = b.parent
WHERE b.id = ?;

-- name: read_children
-- Branches forked directly from one, oldest first.
SELECT b.name, p.name, o.name, b.parent_seq, b.head
FROM branches b JOIN projects p ON p.id = b.project JOIN branches o ON o.id = b.parent
WHERE b.parent = ? ORDER BY b.id;

-- name: read_head
-- Where a branch stands and who may write it, to say why an append was refused.
SELECT head, fence, holder, until, generation FROM branches WHERE id = ?;

-- name: add_branch
-- A new branch as it stands after the append that creates it; nothing happens when its name is taken.
INSERT OR IGNORE INTO branches (name, project, parent, parent_seq, head, fence, holder, until, generation)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id;

-- name: advance_held
-- Moves the head for the holder of the lease and extends the lease.
UPDATE branches SET head = ?, until = ?
WHERE id = ? AND head = ? AND fence = ? AND holder <> '' AND generation = ?;

-- name: advance_and_release
-- Moves the head for the holder of the lease, who gives it back.
UPDATE branches SET head = ?, until = 0, holder = ''
WHERE id = ? AND head = ? AND fence = ? AND holder <> '' AND generation = ?;

-- name: advance_and_take
-- Moves the head and takes the lease when it is free, expired, of an older generation or the taker's own.
UPDATE branches SET head = ?1, fence = fence + 1, holder = ?2, until = ?3, generation = ?4
WHERE id = ?5 AND head = ?6 AND (holder IN ('', ?7) OR until <= ?8 OR generation <> ?4) RETURNING fence;

-- name: advance_free
-- Moves the head of a branch that nobody holds.
UPDATE branches SET head = ? WHERE id = ? AND head = ? AND (holder = '' OR until <= ? OR generation <> ?);

-- name: renew_lease
-- Extends a lease that is still current.
UPDATE branches SET until = ? WHERE id = ? AND fence = ? AND holder <> '' AND generation = ?;

-- name: add_entry
-- One line of the journal.
INSERT INTO entries (kind, run, at, body) VALUES (?, ?, ?, ?);

-- name: add_place
-- Where that line stands.
INSERT INTO places (place, entry) VALUES (?, ?);

-- name: read_entries
-- Entries of one branch between two places, oldest first, at most so many.
SELECT p.place & 0xffffffff, e.kind, e.run, e.at, e.body FROM places p JOIN entries e ON e.id = p.entry
WHERE p.place > ? AND p.place <= ? ORDER BY p.place LIMIT ?;

-- name: read_run_entries
-- The same of one run.
SELECT p.place & 0xffffffff, e.kind, e.run, e.at, e.body FROM places p JOIN entries e ON e.id = p.entry
WHERE p.place > ? AND p.place <= ? AND e.run = ? ORDER BY p.place LIMIT ?;

-- name: read_entry
-- One entry and its number.
SELECT e.id, e.kind, e.run, e.at, e.body FROM places p JOIN entries e ON e.id = p.entry WHERE p.place = ?;

-- name: read_numbered
-- What an entry is known by its number to say.
SELECT kind, run, at, body FROM entries WHERE id = ?;

-- name: change_entry
-- Replaces what an entry says; a body of the same length is overwritten where it stands.
UPDATE entries SET kind = ?, body = ? WHERE id = ?;

-- name: read_kinds
-- Entries of a range of places whose kind is one of a JSON list, in order, with their numbers.
SELECT p.place, e.id, e.kind, e.run, e.at, e.body FROM places p JOIN entries e ON e.id = p.entry
WHERE p.place > ? AND p.place <= ? AND e.kind IN (SELECT value FROM json_each(?)) ORDER BY p.place;

-- name: add_frame
-- A batch of events of an open run.
INSERT INTO frames (run, first, last, body) VALUES (?, ?, ?, ?);

-- name: read_frames
-- Batches of a run that end beyond one event and begin beyond another, in order, at most so many.
SELECT first, last, body FROM frames WHERE run = ? AND last > ? AND first > ? ORDER BY first LIMIT ?;

-- name: read_sealed
-- The packed events of a run when they end beyond an event.
SELECT first, last, body FROM sealed WHERE run = ?1 AND last >= 0 AND last > ?2;

-- name: drop_frames
-- Forgets the batches of a run.
DELETE FROM frames WHERE run = ?;

-- name: seal
-- Keeps the packed events of a run.
INSERT INTO sealed (run, first, last, body) VALUES (?, ?, ?, ?);

-- name: drop_sealed
-- Forgets the packed events of a run and gives their room back.
DELETE FROM sealed WHERE run = ? AND last >= 0;

-- name: erase_sealed
-- Overwrites the packed events of a run where they stand: one byte less, so that the row cannot outgrow its page.
UPDATE sealed SET last = -1, body = zeroblob(length(body) - 1) WHERE run = ? AND last >= 0;

-- name: drop_erased_frames
-- Gives back the room of erased streams.
DELETE FROM sealed WHERE last = -1;

-- name: trim_shortened
-- Gives back the room of bodies that were shortened and filled up with spaces: their codes are 64 higher.
UPDATE entries SET kind = kind - 64, body = CAST(rtrim(CAST(body AS TEXT), ' ') AS BLOB) WHERE kind > 64;

-- name: trim_erased
-- Gives back the room of erased entries, of which seven bytes say all that is known.
UPDATE entries SET body = substr(body, 1, 7) WHERE kind = 12 AND length(body) > 7;

-- name: check_branches
-- Branches whose entries are not as many as their head says.
SELECT name, found, head - parent_seq FROM (
  SELECT b.name, b.head, b.parent_seq,
    (SELECT count(*) FROM places p JOIN entries e ON e.id = p.entry
     WHERE p.place > (b.id << 32) + b.parent_seq AND p.place <= (b.id << 32) + b.head) AS found
  FROM branches b
) WHERE found <> head - parent_seq LIMIT 20;

-- name: check_parents
-- Branches forked where there is nothing.
SELECT b.name, b.parent_seq FROM branches b LEFT JOIN branches o ON o.id = b.parent
WHERE b.parent IS NOT NULL AND (o.id IS NULL OR o.head < b.parent_seq OR o.project <> b.project) LIMIT 20;

-- name: count_strays
-- Entries beyond every branch.
SELECT (SELECT count(*) FROM entries) - (SELECT coalesce(sum(head - parent_seq), 0) FROM branches);
