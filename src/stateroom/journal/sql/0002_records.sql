-- Records: the named things besides runs and conversations. Both tables are an index over the entries.
--
-- A record is known here by a hash of its collection and id, because clients choose some ids.

-- Index: which entries speak of which record. says: 0 it was dropped, 1 its state, 2 a note. A drop is here only while
-- something is here that was said before it: until that is erased, which is a matter of moments.
CREATE TABLE record_entries (
  project INTEGER NOT NULL,
  key BLOB NOT NULL,
  says INTEGER NOT NULL,
  entry INTEGER NOT NULL,
  place INTEGER NOT NULL,
  PRIMARY KEY (project, key, says, entry)
) WITHOUT ROWID;

CREATE INDEX record_drops ON record_entries (project, key) WHERE says = 0;

-- Index: living records, by the number of the entry that first put each, which orders them by age; latest is the
-- number of the entry that says its state, and place is where that stands.
CREATE TABLE records (
  first INTEGER PRIMARY KEY,
  project INTEGER NOT NULL,
  collection TEXT NOT NULL,
  key BLOB NOT NULL,
  latest INTEGER NOT NULL,
  place INTEGER NOT NULL,
  open INTEGER NOT NULL,
  expires_at INTEGER NOT NULL
);

CREATE UNIQUE INDEX records_by_key ON records (project, key);

CREATE INDEX records_by_age ON records (project, collection);

CREATE INDEX records_open ON records (collection) WHERE open = 1;

CREATE INDEX records_expiring ON records (expires_at) WHERE expires_at > 0;
