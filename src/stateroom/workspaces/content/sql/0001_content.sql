-- Bytes by the SHA-256 of what they unpack to: small files whole, pieces of large ones, and pages of their lists.
CREATE TABLE chunks (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  digest BLOB NOT NULL UNIQUE,
  born INTEGER NOT NULL,
  size INTEGER NOT NULL,
  packed INTEGER NOT NULL,
  data BLOB NOT NULL
) STRICT;

-- Large contents: which pages of chunk digests they consist of.
CREATE TABLE lists (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  digest BLOB NOT NULL UNIQUE,
  born INTEGER NOT NULL,
  size INTEGER NOT NULL,
  pages BLOB NOT NULL
) STRICT;

-- Directories; height is that of what stands below, so that sweeping can go from the top down.
CREATE TABLE trees (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  digest BLOB NOT NULL UNIQUE,
  born INTEGER NOT NULL,
  height INTEGER NOT NULL,
  files INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  size INTEGER NOT NULL,
  packed INTEGER NOT NULL,
  body BLOB NOT NULL
) STRICT;
