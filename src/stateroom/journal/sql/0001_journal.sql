-- The journal: projects, branches, entries and frames are the truth; the tables after them are an index over it.
--
-- A place is branch << 32 | seq: one integer that sorts as (branch, seq) does. As a rowid it keeps large bodies in
-- their leaf pages, where a two-column key without rowid would send each body beyond 1,000 bytes to a page of its own.

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

-- One line of the journal at its place; kind by the fixed numbers of stateroom.journal.codes.
CREATE TABLE entries (
  place INTEGER PRIMARY KEY,
  kind INTEGER NOT NULL,
  run INTEGER NOT NULL,
  at INTEGER NOT NULL,
  body BLOB NOT NULL
);

-- Batches of the events of a run that is open; run is the place of its first entry.
CREATE TABLE frames (
  run INTEGER NOT NULL,
  first INTEGER NOT NULL,
  last INTEGER NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (run, first)
) WITHOUT ROWID;

-- All events of a run that has ended, in one packed body.
CREATE TABLE sealed (
  run INTEGER PRIMARY KEY,
  first INTEGER NOT NULL,
  last INTEGER NOT NULL,
  body BLOB NOT NULL
);

-- Index: runs, at the place of their first entry; ended is the seq of their terminal entry.
CREATE TABLE runs (
  place INTEGER PRIMARY KEY,
  project INTEGER NOT NULL,
  id TEXT NOT NULL,
  ended INTEGER,
  status NOT NULL,
  surface NOT NULL,
  created_at INTEGER NOT NULL
);

CREATE INDEX runs_by_id ON runs (project, id);

CREATE INDEX runs_by_age ON runs (project, created_at);

CREATE INDEX runs_open ON runs (created_at) WHERE ended IS NULL;

-- Index: items that brought their own id or were added to a conversation.
CREATE TABLE items (
  project INTEGER NOT NULL,
  id TEXT NOT NULL,
  place INTEGER NOT NULL,
  position INTEGER NOT NULL,
  PRIMARY KEY (project, id, place, position)
) WITHOUT ROWID;

-- Index: living conversations by their branch.
CREATE TABLE conversations (
  branch INTEGER PRIMARY KEY,
  project INTEGER NOT NULL,
  id TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  metadata BLOB NOT NULL,
  forked_from TEXT NOT NULL
);

CREATE INDEX conversations_by_id ON conversations (project, id);

CREATE INDEX conversations_by_age ON conversations (project, created_at);

-- Index: which entries refer to which blob; a digest of 64 hexadecimal digits is kept as its 32 bytes.
CREATE TABLE blob_uses (
  digest NOT NULL,
  place INTEGER NOT NULL,
  PRIMARY KEY (digest, place)
) WITHOUT ROWID;
