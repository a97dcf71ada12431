-- The journal: projects, branches, entries and frames are the truth; the tables after them are an index over it.
--
-- Whatever a user said stands in the bodies of entries, frames and sealed, and nowhere else. Those three tables only
-- ever grow at their end, in the order of arrival: rows that move between pages leave copies in the gaps of pages,
-- where no erasure finds them. What is looked up in another order has a table of numbers for it.

-- Facts about the file itself: its generation, which every server that opens it raises.
CREATE TABLE meta (
  name TEXT PRIMARY KEY,
  value INTEGER NOT NULL
) WITHOUT ROWID;

INSERT INTO meta (name, value) VALUES ('generation', 0);

CREATE TABLE projects (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE
);

-- A branch and its writer's lease: current while holder is not '' and generation is the file's; until in milliseconds.
CREATE TABLE branches (
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  project INTEGER NOT NULL,
  parent INTEGER,
  parent_seq INTEGER NOT NULL,
  head INTEGER NOT NULL,
  fence INTEGER NOT NULL,
  holder TEXT NOT NULL,
  until INTEGER NOT NULL,
  generation INTEGER NOT NULL
);

CREATE INDEX branches_by_parent ON branches (parent) WHERE parent IS NOT NULL;

-- One line of the journal; kind by the fixed numbers of stateroom.journal.codes.
CREATE TABLE entries (
  id INTEGER PRIMARY KEY,
  kind INTEGER NOT NULL,
  run INTEGER NOT NULL,
  at INTEGER NOT NULL,
  body BLOB NOT NULL
);

-- Which entry stands where. A place is branch << 32 | seq: one integer that sorts as (branch, seq) does.
CREATE TABLE places (
  place INTEGER PRIMARY KEY,
  entry INTEGER NOT NULL
);

-- Batches of the events of a run that is open; run is the place of its first entry.
CREATE TABLE frames (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL,
  first INTEGER NOT NULL,
  last INTEGER NOT NULL,
  body BLOB NOT NULL
);

CREATE UNIQUE INDEX frames_by_run ON frames (run, first);

-- All events of a run that has ended, in one packed body; last is -1 and the body zeros once it was erased.
CREATE TABLE sealed (
  id INTEGER PRIMARY KEY,
  run INTEGER NOT NULL,
  first INTEGER NOT NULL,
  last INTEGER NOT NULL,
  body BLOB NOT NULL
);

CREATE INDEX sealed_by_run ON sealed (run);

-- Index: runs, by the number of their first entry, which orders them by age; ended is the seq of their terminal entry.
CREATE TABLE runs (
  entry INTEGER PRIMARY KEY,
  place INTEGER NOT NULL,
  project INTEGER NOT NULL,
  ended INTEGER,
  status NOT NULL,
  surface NOT NULL
);

CREATE INDEX runs_by_age ON runs (project);

CREATE INDEX runs_open ON runs (ended) WHERE ended IS NULL;

-- Index: the ids that runs go by; the other way round, a run's first entry says its id.
CREATE TABLE run_ids (
  project INTEGER NOT NULL,
  id TEXT NOT NULL,
  entry INTEGER NOT NULL,
  PRIMARY KEY (project, id, entry)
) WITHOUT ROWID;

-- Index: items that brought their own id or were added to a conversation, by a hash of the id, which clients choose.
CREATE TABLE items (
  project INTEGER NOT NULL,
  key BLOB NOT NULL,
  entry INTEGER NOT NULL,
  position INTEGER NOT NULL,
  place INTEGER NOT NULL,
  PRIMARY KEY (project, key, entry, position)
) WITHOUT ROWID;

-- Index: living conversations by their branch; metadata is the number of the entry that says it.
CREATE TABLE conversations (
  branch INTEGER PRIMARY KEY,
  entry INTEGER NOT NULL,
  project INTEGER NOT NULL,
  id TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  metadata INTEGER NOT NULL,
  forked_from TEXT NOT NULL
);

CREATE INDEX conversations_by_id ON conversations (project, id);

CREATE INDEX conversations_by_age ON conversations (project, entry);

-- Index: which entries refer to which blob; a digest of 64 hexadecimal digits is kept as its 32 bytes.
CREATE TABLE blob_uses (
  digest NOT NULL,
  entry INTEGER NOT NULL,
  PRIMARY KEY (digest, entry)
) WITHOUT ROWID;
