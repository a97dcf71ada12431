-- Statements on the tables derived from the entries, each named, with what it is for.

-- name: put_run
-- Indexes a run; one that is there already keeps its end.
INSERT INTO runs (place, project, id, ended, status, surface, created_at) VALUES (?, ?, ?, NULL, 0, ?, ?)
ON CONFLICT (place) DO UPDATE SET id = excluded.id, surface = excluded.surface, created_at = excluded.created_at;

-- name: end_run
-- Notes the end of a run.
UPDATE runs SET ended = ?, status = ? WHERE place = ?;

-- name: reopen_run
-- A run whose terminal entry was erased has none.
UPDATE runs SET ended = NULL, status = 0 WHERE place = ?;

-- name: drop_run
-- Forgets a run whose first entry was erased.
DELETE FROM runs WHERE place = ?;

-- name: put_item
-- Indexes an item under an id of its own.
INSERT OR IGNORE INTO items (project, id, place, position) VALUES (?, ?, ?, ?);

-- name: drop_item
-- Forgets one place of an item.
DELETE FROM items WHERE project = ? AND id = ? AND place = ? AND position = ?;

-- name: put_blob_use
-- Notes that an entry refers to a blob.
INSERT OR IGNORE INTO blob_uses (digest, place) VALUES (?, ?);

-- name: drop_blob_use
-- An entry refers to a blob no more.
DELETE FROM blob_uses WHERE digest = ? AND place = ?;

-- name: put_conversation
-- Indexes the conversation of a branch.
INSERT OR REPLACE INTO conversations (branch, project, id, created_at, metadata, forked_from)
VALUES (?, ?, ?, ?, ?, ?);

-- name: set_metadata
-- Changes the metadata of the conversation of a branch.
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

-- name: clear_items
-- Empties the index of items, to derive it anew.
DELETE FROM items;

-- name: clear_conversations
-- Empties the index of conversations, to derive it anew.
DELETE FROM conversations;

-- name: clear_blob_uses
-- Empties the index of blobs, to derive it anew.
DELETE FROM blob_uses;

-- name: find_run
-- A run by its id; the latest one wins.
SELECT r.id, b.name, r.place & 0xffffffff, coalesce(r.ended, -1), r.status, r.surface, r.created_at, p.name
FROM runs r JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.project = (SELECT id FROM projects WHERE name = ?) AND r.id = ?
ORDER BY r.created_at DESC, r.place DESC LIMIT 1;

-- name: runs_before
-- Runs of a project older than a mark (time, place), newest first.
SELECT r.id, b.name, r.place & 0xffffffff, coalesce(r.ended, -1), r.status, r.surface, r.created_at, p.name
FROM runs r JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.project = (SELECT id FROM projects WHERE name = ?) AND (r.created_at, r.place) < (?, ?)
ORDER BY r.created_at DESC, r.place DESC LIMIT ?;

-- name: runs_after
-- Runs of a project younger than a mark (time, place), oldest first.
SELECT r.id, b.name, r.place & 0xffffffff, coalesce(r.ended, -1), r.status, r.surface, r.created_at, p.name
FROM runs r JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.project = (SELECT id FROM projects WHERE name = ?) AND (r.created_at, r.place) > (?, ?)
ORDER BY r.created_at, r.place LIMIT ?;

-- name: run_mark
-- Where a run stands in the order of age.
SELECT created_at, place FROM runs WHERE project = (SELECT id FROM projects WHERE name = ?) AND id = ?
ORDER BY created_at DESC, place DESC LIMIT 1;

-- name: open_runs
-- All runs without a terminal entry, oldest first.
SELECT r.id, b.name, r.place & 0xffffffff, -1, r.status, r.surface, r.created_at, p.name
FROM runs r JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.ended IS NULL ORDER BY r.created_at, r.place;

-- name: runs_between
-- Runs of one branch, by their places, oldest first.
SELECT r.id, b.name, r.place & 0xffffffff, coalesce(r.ended, -1), r.status, r.surface, r.created_at, p.name
FROM runs r JOIN projects p ON p.id = r.project JOIN branches b ON b.id = r.place >> 32
WHERE r.place > ? AND r.place <= ? ORDER BY r.place;

-- name: run_end
-- The seq of the terminal entry of a run.
SELECT ended FROM runs WHERE place = ?;

-- name: find_item
-- Where an item stands; the latest place wins.
SELECT b.name, i.place & 0xffffffff, i.position
FROM items i JOIN branches b ON b.id = i.place >> 32 JOIN entries e ON e.place = i.place
WHERE i.project = (SELECT id FROM projects WHERE name = ?) AND i.id = ?
ORDER BY e.at DESC, i.place DESC, i.position DESC LIMIT 1;

-- name: find_conversation
-- A living conversation by its id; the latest one wins.
SELECT c.id, b.name, c.created_at, c.metadata, c.forked_from
FROM conversations c JOIN branches b ON b.id = c.branch
WHERE c.project = (SELECT id FROM projects WHERE name = ?) AND c.id = ?
ORDER BY c.created_at DESC, c.branch DESC LIMIT 1;

-- name: conversations_before
-- Conversations of a project older than a mark (time, branch), newest first.
SELECT c.id, b.name, c.created_at, c.metadata, c.forked_from
FROM conversations c JOIN branches b ON b.id = c.branch
WHERE c.project = (SELECT id FROM projects WHERE name = ?) AND (c.created_at, c.branch) < (?, ?)
ORDER BY c.created_at DESC, c.branch DESC LIMIT ?;

-- name: conversations_after
-- Conversations of a project younger than a mark (time, branch), oldest first.
SELECT c.id, b.name, c.created_at, c.metadata, c.forked_from
FROM conversations c JOIN branches b ON b.id = c.branch
WHERE c.project = (SELECT id FROM projects WHERE name = ?) AND (c.created_at, c.branch) > (?, ?)
ORDER BY c.created_at, c.branch LIMIT ?;

-- name: conversation_mark
-- Where a conversation stands in the order of age.
SELECT created_at, branch FROM conversations WHERE project = (SELECT id FROM projects WHERE name = ?) AND id = ?
ORDER BY created_at DESC, branch DESC LIMIT 1;

-- name: find_blob_use
-- Whether any entry refers to a blob.
SELECT 1 FROM blob_uses WHERE digest = ? LIMIT 1;

-- name: branch_projects
-- To whom each branch belongs, for deriving rows anew.
SELECT id, project FROM branches;
