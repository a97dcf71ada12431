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
UPDATE runs SET ended = ?, status = ? WHERE entry = (SELECT entry FROM places WHERE place = ?);

-- name: reopen_run
-- A run whose terminal entry was erased has none.
UPDATE runs SET ended = NULL, status = 0 WHERE entry = (SELECT entry FROM places WHERE place = ?);

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

-- name: branch_projects
-- To whom each branch belongs, for deriving rows anew.
SELECT id, project FROM branches;

-- name: find_run
-- A run by the number of its project and its id; the latest one wins.
SELECT r.place, coalesce(r.ended, -1), r.status, r.surface, e.at
FROM run_ids i JOIN runs r ON r.entry = i.entry JOIN entries e ON e.id = i.entry
WHERE i.project = ? AND i.id = ? ORDER BY i.entry DESC LIMIT 1;

-- name: runs_before
-- Runs of a project older than a mark, newest first.
SELECT b.name, r.place & 0xffffffff, coalesce(r.ended, -1), r.status, r.surface, e.at, p.name, e.kind, e.body
FROM runs r JOIN entries e ON e.id = r.entry JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.project = (SELECT id FROM projects WHERE name = ?) AND r.entry < ?
ORDER BY r.entry DESC LIMIT ?;

-- name: runs_after
-- Runs of a project younger than a mark, oldest first.
SELECT b.name, r.place & 0xffffffff, coalesce(r.ended, -1), r.status, r.surface, e.at, p.name, e.kind, e.body
FROM runs r JOIN entries e ON e.id = r.entry JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.project = (SELECT id FROM projects WHERE name = ?) AND r.entry > ?
ORDER BY r.entry LIMIT ?;

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
-- Conversations of a project older than a mark, newest first.
SELECT c.id, b.name, c.created_at, c.forked_from, e.kind, e.body
FROM conversations c JOIN branches b ON b.id = c.branch JOIN entries e ON e.id = c.metadata
WHERE c.project = (SELECT id FROM projects WHERE name = ?) AND c.entry < ?
ORDER BY c.entry DESC LIMIT ?;

-- name: conversations_after
-- Conversations of a project younger than a mark, oldest first.
SELECT c.id, b.name, c.created_at, c.forked_from, e.kind, e.body
FROM conversations c JOIN branches b ON b.id = c.branch JOIN entries e ON e.id = c.metadata
WHERE c.project = (SELECT id FROM projects WHERE name = ?) AND c.entry > ?
ORDER BY c.entry LIMIT ?;

-- name: conversation_mark
-- Where a conversation stands in the order of age.
SELECT entry FROM conversations WHERE project = (SELECT id FROM projects WHERE name = ?) AND id = ?
ORDER BY entry DESC LIMIT 1;

-- name: find_blob_use
-- Whether any entry refers to a blob.
SELECT 1 FROM blob_uses WHERE digest = ? LIMIT 1;
