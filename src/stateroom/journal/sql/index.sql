-- Statements on the tables derived from the entries, each named, with what it is for.

-- name: put_run
-- Indexes a run; one that is there already keeps its end.
INSERT INTO runs (entry, place, project, ended, status, surface) VALUES (?, ?, ?, NULL, 0, ?)
ON CONFLICT (entry) DO UPDATE SET surface = excluded.surface;

-- name: put_run_id
-- Indexes a run under its id.
INSERT OR IGNORE INTO run_ids (project, id, entry) VALUES (?, ?, ?);

-- name: end_run
-- Notes the end of the run that starts at a place.
UPDATE runs SET ended = ?, ended_at = ?, status = ? WHERE entry = (SELECT entry FROM places WHERE place = ?);

-- name: reopen_run
-- A run whose terminal entry was erased has none.
UPDATE runs SET ended = NULL, ended_at = NULL, status = 0 WHERE entry = (SELECT entry FROM places WHERE place = ?);

-- name: drop_run
-- Forgets a run whose first entry was erased.
DELETE FROM runs WHERE entry = ?;

-- name: drop_run_id
-- Forgets an id of a run.
DELETE FROM run_ids WHERE project = ? AND id = ? AND entry = ?;

-- name: put_item
-- Indexes an item under an id of its own.
INSERT OR IGNORE INTO items (project, key, entry, position, place) VALUES (?, ?, ?, ?, ?);

-- name: drop_item
-- Forgets one place of an item.
DELETE FROM items WHERE project = ? AND key = ? AND entry = ? AND position = ?;

-- name: put_blob_use
-- Notes that an entry refers to a blob.
INSERT OR IGNORE INTO blob_uses (digest, entry) VALUES (?, ?);

-- name: drop_blob_use
-- An entry refers to a blob no more.
DELETE FROM blob_uses WHERE digest = ? AND entry = ?;

-- name: put_conversation
-- Indexes the conversation of a branch.
INSERT OR REPLACE INTO conversations (branch, entry, project, id, created_at, metadata, forked_from)
VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: set_metadata
-- Notes which entry now says the metadata of the conversation of a branch.
UPDATE conversations SET metadata = ? WHERE branch = ?;

-- name: drop_conversation
-- Forgets the conversation of a branch when it goes by this id.
DELETE FROM conversations WHERE branch = ? AND id = ?;

-- name: drop_branch_conversation
-- Forgets the conversation of a branch.
DELETE FROM conversations WHERE branch = ?;

-- name: put_record_entry
-- Notes that an entry speaks of a record.
INSERT OR IGNORE INTO record_entries (project, key, says, entry, place) VALUES (?, ?, ?, ?, ?);

-- name: put_record_drop
-- Notes that an entry drops a record of which something was said.
INSERT OR IGNORE INTO record_entries (project, key, says, entry, place)
SELECT ?1, ?2, 0, ?3, ?4 WHERE EXISTS (SELECT 1 FROM record_entries WHERE project = ?1 AND key = ?2);

-- name: settle_drops
-- Forgets the drops of a record before which nothing is said any more.
DELETE FROM record_entries WHERE project = ?1 AND key = ?2 AND says = 0 AND NOT EXISTS (
  SELECT 1 FROM record_entries s
  WHERE s.project = ?1 AND s.key = ?2 AND s.says > 0 AND s.entry < record_entries.entry);

-- name: drop_record_entry
-- An entry speaks of a record no more.
DELETE FROM record_entries WHERE project = ? AND key = ? AND says = ? AND entry = ?;

-- name: put_record
-- Indexes a living record; one that is there already keeps its age.
INSERT INTO records (first, project, collection, key, latest, place, open, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (project, key) DO UPDATE SET
  latest = excluded.latest, place = excluded.place, open = excluded.open, expires_at = excluded.expires_at;

-- name: drop_record
-- Forgets a record.
DELETE FROM records WHERE project = ? AND key = ?;

-- name: record_death
-- The entry that last dropped a record.
SELECT coalesce(max(entry), -1) FROM record_entries WHERE project = ? AND key = ? AND says = 0;

-- name: record_life
-- The first and the latest put of a record beyond the entry that dropped it, and where the latest stands.
SELECT
  (SELECT min(entry) FROM record_entries WHERE project = ?1 AND key = ?2 AND says = 1 AND entry > ?3), entry, place
FROM record_entries WHERE project = ?1 AND key = ?2 AND says = 1 AND entry > ?3 ORDER BY entry DESC LIMIT 1;

-- name: record_keys
-- Records that any entry speaks of, beyond one of them.
SELECT DISTINCT project, key FROM record_entries WHERE (project, key) > (?, ?) ORDER BY project, key LIMIT 1000;

-- name: clear_runs
-- Empties the index of runs, to derive it anew.
DELETE FROM runs;

-- name: clear_run_ids
-- Empties the index of the ids of runs, to derive it anew.
DELETE FROM run_ids;

-- name: clear_items
-- Empties the index of items, to derive it anew.
DELETE FROM items;

-- name: clear_conversations
-- Empties the index of conversations, to derive it anew.
DELETE FROM conversations;

-- name: clear_blob_uses
-- Empties the index of blobs, to derive it anew.
DELETE FROM blob_uses;

-- name: clear_record_entries
-- Empties the index of what speaks of records, to derive it anew.
DELETE FROM record_entries;

-- name: clear_records
-- Empties the index of records, to derive it anew.
DELETE FROM records;

-- name: branch_projects
-- To whom each branch belongs, for deriving rows anew.
SELECT id, project FROM branches;

-- name: find_run
-- A run by the number of its project and its id; the latest one wins.
SELECT r.place, coalesce(r.ended, -1), r.status, r.surface, e.at
FROM run_ids i JOIN runs r ON r.entry = i.entry JOIN entries e ON e.id = i.entry
WHERE i.project = ? AND i.id = ? ORDER BY i.entry DESC LIMIT 1;

-- name: runs_before
-- Runs of a project, and of a surface unless that is null, between two marks, newest first.
SELECT b.name, r.place & 0xffffffff, coalesce(r.ended, -1), r.status, r.surface, e.at, p.name, e.kind, e.body
FROM runs r JOIN entries e ON e.id = r.entry JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.project = (SELECT id FROM projects WHERE name = ?1) AND r.entry < ?2 AND r.entry > ?5 AND (?4 IS NULL OR r.surface = ?4)
ORDER BY r.entry DESC LIMIT ?3;

-- name: runs_after
-- Runs of a project, and of a surface unless that is null, between two marks, oldest first.
SELECT b.name, r.place & 0xffffffff, coalesce(r.ended, -1), r.status, r.surface, e.at, p.name, e.kind, e.body
FROM runs r JOIN entries e ON e.id = r.entry JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.project = (SELECT id FROM projects WHERE name = ?1) AND r.entry > ?2 AND r.entry < ?5 AND (?4 IS NULL OR r.surface = ?4)
ORDER BY r.entry LIMIT ?3;

-- name: run_mark
-- Where a run stands in the order of age.
SELECT entry FROM run_ids WHERE project = (SELECT id FROM projects WHERE name = ?) AND id = ?
ORDER BY entry DESC LIMIT 1;

-- name: open_runs
-- All runs without a terminal entry, oldest first.
SELECT b.name, r.place & 0xffffffff, coalesce(r.ended, -1), r.status, r.surface, e.at, p.name, e.kind, e.body
FROM runs r JOIN entries e ON e.id = r.entry JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.ended IS NULL ORDER BY r.entry;

-- name: runs_between
-- Runs of one branch, by its places, oldest first.
SELECT b.name, r.place & 0xffffffff, coalesce(r.ended, -1), r.status, r.surface, e.at, p.name, e.kind, e.body
FROM places l CROSS JOIN runs r ON r.entry = l.entry JOIN entries e ON e.id = r.entry
JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE l.place > ? AND l.place <= ? ORDER BY l.place;

-- name: run_end
-- The seq of the terminal entry of the run that starts at a place.
SELECT ended FROM runs WHERE entry = (SELECT entry FROM places WHERE place = ?);

-- name: ended_runs
-- Runs of a project, by its number, that ended up to a moment, beyond one of them, by age. Reads the younger ones, too.
SELECT r.entry, b.name, r.place & 0xffffffff, r.ended, r.ended_at,
  EXISTS (SELECT 1 FROM conversations c WHERE c.branch = r.place >> 32)
FROM runs r INDEXED BY runs_by_age CROSS JOIN branches b ON b.id = r.place >> 32
WHERE r.project = ? AND r.ended_at <= ? AND r.entry > ? ORDER BY r.entry LIMIT ?;

-- name: kept_streams
-- Runs that have ended and whose stream is kept, of every project, beyond a mark, by their places.
SELECT s.run, p.name, b.name, s.run & 0xffffffff, r.ended, r.ended_at,
  EXISTS (SELECT 1 FROM conversations c WHERE c.branch = s.run >> 32)
FROM sealed s INDEXED BY sealed_by_run CROSS JOIN places l ON l.place = s.run CROSS JOIN runs r ON r.entry = l.entry
JOIN branches b ON b.id = s.run >> 32 JOIN projects p ON p.id = r.project
WHERE s.last >= 0 AND s.run > ? AND r.ended IS NOT NULL ORDER BY s.run LIMIT ?;

-- name: branch_needs
-- The last seq of a branch that its living conversation, an open run, or a run that ended after a moment needs.
SELECT CASE WHEN EXISTS (SELECT 1 FROM conversations c WHERE c.branch = b.id) THEN b.head ELSE coalesce((
  SELECT max(CASE WHEN r.ended IS NULL THEN b.head WHEN r.ended_at > ?2 THEN r.ended ELSE -1 END)
  FROM places l CROSS JOIN runs r ON r.entry = l.entry
  WHERE l.place > (b.id << 32) + b.parent_seq AND l.place <= (b.id << 32) + b.head
), -1) END FROM branches b WHERE b.id = ?1;

-- name: branches_of
-- The branches of a project, by its number, beyond one of them, oldest first. Reads those of others, too.
SELECT b.name, p.name, coalesce(o.name, ''), b.parent_seq, b.head
FROM branches b JOIN projects p ON p.id = b.project LEFT JOIN branches o ON o.id = b.parent
WHERE b.project = ? AND b.id > ? ORDER BY b.id LIMIT ?;

-- name: all_projects
-- Every project by its name.
SELECT name FROM projects ORDER BY id;

-- name: find_item
-- Where an item stands; the latest place wins.
SELECT b.name, i.place & 0xffffffff, i.position FROM items i JOIN branches b ON b.id = i.place >> 32
WHERE i.project = (SELECT id FROM projects WHERE name = ?) AND i.key = ? ORDER BY i.entry DESC, i.position DESC LIMIT 1;

-- name: find_conversation
-- A living conversation by its id, with the entry that says its metadata; the latest one wins.
SELECT c.id, b.name, c.created_at, c.forked_from, e.kind, e.body
FROM conversations c JOIN branches b ON b.id = c.branch JOIN entries e ON e.id = c.metadata
WHERE c.project = (SELECT id FROM projects WHERE name = ?) AND c.id = ?
ORDER BY c.entry DESC LIMIT 1;

-- name: conversations_before
-- Conversations of a project between two marks, newest first.
SELECT c.id, b.name, c.created_at, c.forked_from, e.kind, e.body
FROM conversations c JOIN branches b ON b.id = c.branch JOIN entries e ON e.id = c.metadata
WHERE c.project = (SELECT id FROM projects WHERE name = ?) AND c.entry < ? AND c.entry > ?
ORDER BY c.entry DESC LIMIT ?;

-- name: conversations_after
-- Conversations of a project between two marks, oldest first.
SELECT c.id, b.name, c.created_at, c.forked_from, e.kind, e.body
FROM conversations c JOIN branches b ON b.id = c.branch JOIN entries e ON e.id = c.metadata
WHERE c.project = (SELECT id FROM projects WHERE name = ?) AND c.entry > ? AND c.entry < ?
ORDER BY c.entry LIMIT ?;

-- name: conversation_mark
-- Where a conversation stands in the order of age.
SELECT entry FROM conversations WHERE project = (SELECT id FROM projects WHERE name = ?) AND id = ?
ORDER BY entry DESC LIMIT 1;

-- name: find_blob_use
-- Whether any entry refers to a blob.
SELECT 1 FROM blob_uses WHERE digest = ? LIMIT 1;

-- name: find_record
-- A living record by the number of its project and its key.
SELECT b.name, r.place & 0xffffffff, f.at, e.at, p.name, e.kind, e.body
FROM records r JOIN entries e ON e.id = r.latest JOIN entries f ON f.id = r.first
JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.project = ? AND r.key = ?;

-- name: records_before
-- Records of a project's collection between two marks, newest first.
SELECT b.name, r.place & 0xffffffff, f.at, e.at, p.name, e.kind, e.body
FROM records r JOIN entries e ON e.id = r.latest JOIN entries f ON f.id = r.first
JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.project = ? AND r.collection = ? AND r.first < ? AND r.first > ?
ORDER BY r.first DESC LIMIT ?;

-- name: records_after
-- Records of a project's collection between two marks, oldest first.
SELECT b.name, r.place & 0xffffffff, f.at, e.at, p.name, e.kind, e.body
FROM records r JOIN entries e ON e.id = r.latest JOIN entries f ON f.id = r.first
JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.project = ? AND r.collection = ? AND r.first > ? AND r.first < ?
ORDER BY r.first LIMIT ?;

-- name: record_mark
-- Where a record stands in the order of age.
SELECT first FROM records WHERE project = ? AND collection = ? AND key = ?;

-- name: open_records
-- The open records of a collection, of every project, oldest first.
SELECT b.name, r.place & 0xffffffff, f.at, e.at, p.name, e.kind, e.body
FROM records r JOIN entries e ON e.id = r.latest JOIN entries f ON f.id = r.first
JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.collection = ? AND r.open = 1 ORDER BY r.first;

-- name: expired_records
-- Records whose time has come, the soonest first.
SELECT b.name, r.place & 0xffffffff, f.at, e.at, p.name, e.kind, e.body
FROM records r JOIN entries e ON e.id = r.latest JOIN entries f ON f.id = r.first
JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.expires_at > 0 AND r.expires_at <= ? ORDER BY r.expires_at, r.first LIMIT ?;

-- name: record_places
-- Where the entries stand that say something of a record: states, then notes, each in the order of arrival.
SELECT b.name, s.place & 0xffffffff, s.says, s.entry < coalesce(
  (SELECT max(d.entry) FROM record_entries d WHERE d.project = ?1 AND d.key = ?2 AND d.says = 0), -1)
FROM record_entries s JOIN branches b ON b.id = s.place >> 32
WHERE s.project = ?1 AND s.key = ?2 AND s.says > 0 ORDER BY s.says, s.entry;

-- name: notes_before
-- What is noted of a living record between two marks, the latest first.
SELECT s.entry, e.at, e.kind, e.body FROM record_entries s CROSS JOIN entries e ON e.id = s.entry
WHERE s.project = ?1 AND s.key = ?2 AND s.says = 2 AND s.entry < ?3 AND s.entry > max(?4, coalesce(
  (SELECT max(d.entry) FROM record_entries d WHERE d.project = ?1 AND d.key = ?2 AND d.says = 0), -1))
ORDER BY s.entry DESC LIMIT ?5;

-- name: notes_after
-- What is noted of a living record between two marks, the earliest first.
SELECT s.entry, e.at, e.kind, e.body FROM record_entries s CROSS JOIN entries e ON e.id = s.entry
WHERE s.project = ?1 AND s.key = ?2 AND s.says = 2 AND s.entry < ?3 AND s.entry > max(?4, coalesce(
  (SELECT max(d.entry) FROM record_entries d WHERE d.project = ?1 AND d.key = ?2 AND d.says = 0), -1))
ORDER BY s.entry LIMIT ?5;

-- name: unerased_records
-- Records that were dropped, and of which something is still said from before.
SELECT p.name, e.kind, e.body FROM record_entries d JOIN entries e ON e.id = d.entry
JOIN projects p ON p.id = d.project WHERE d.says = 0;
