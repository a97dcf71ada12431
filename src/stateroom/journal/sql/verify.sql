-- Statements of the verification, each named, with what it is for. They read whole tables, in order.

-- name: verify_branches
-- Every branch with its project and what it was forked from.
SELECT b.id, b.name, p.name, b.parent, b.parent_seq, b.head, op.name, o.head
FROM branches b LEFT JOIN projects p ON p.id = b.project
LEFT JOIN branches o ON o.id = b.parent LEFT JOIN projects op ON op.id = o.project ORDER BY b.id;

-- name: verify_places
-- Every place with the entry that stands there.
SELECT p.place, p.entry, e.kind, e.run, e.at, e.body FROM places p LEFT JOIN entries e ON e.id = p.entry ORDER BY p.place;

-- name: count_places
-- How many entries there are to be read.
SELECT count(*) FROM places;

-- name: verify_doubles
-- Entries that stand in more than one place.
SELECT entry, count(*) FROM places GROUP BY entry HAVING count(*) > 1;

-- name: verify_strays
-- Entries that stand nowhere.
SELECT id FROM entries WHERE id NOT IN (SELECT entry FROM places);

-- name: count_streams
-- How many batches and packed streams there are to be read.
SELECT (SELECT count(*) FROM frames) + (SELECT count(*) FROM sealed);

-- name: verify_frames
-- Every batch of events with the run that it belongs to.
SELECT f.run, f.first, f.last, f.body, e.kind, b.name FROM frames f
LEFT JOIN places p ON p.place = f.run LEFT JOIN entries e ON e.id = p.entry
LEFT JOIN branches b ON b.id = f.run >> 32 ORDER BY f.run, f.first;

-- name: verify_sealed
-- Every packed stream with the run that it belongs to.
SELECT f.run, f.first, f.last, f.body, e.kind, b.name FROM sealed f
LEFT JOIN places p ON p.place = f.run LEFT JOIN entries e ON e.id = p.entry
LEFT JOIN branches b ON b.id = f.run >> 32 ORDER BY f.id;

-- name: verify_blob_uses
-- Every blob that an entry refers to.
SELECT DISTINCT digest FROM blob_uses ORDER BY digest;

-- name: verify_blob_users
-- A few of the entries that refer to a blob.
SELECT b.name, p.place & 0xffffffff, p.place >> 32, e.run FROM blob_uses u
JOIN places p ON p.entry = u.entry JOIN entries e ON e.id = u.entry JOIN branches b ON b.id = p.place >> 32
WHERE u.digest = ? LIMIT 3;

-- name: verify_run_name
-- The id of the run that starts at a place.
SELECT i.id FROM places p JOIN run_ids i ON i.entry = p.entry WHERE p.place = ? LIMIT 1;

-- name: verify_containers
-- What is said of each living container: its state, and every note.
SELECT e.kind, e.run, e.at, e.body FROM records r
JOIN record_entries n ON n.project = r.project AND n.key = r.key AND (n.says = 2 OR n.entry = r.latest)
JOIN entries e ON e.id = n.entry WHERE r.collection = 'container';
