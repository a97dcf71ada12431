-- What a retention asks about is found without indexes of its own: they cost every streamed run 40 bytes.

-- Runs that ended by a moment: those of the project are looked through in the order of age.
DROP INDEX runs_by_end;

-- Kept streams: what was erased leaves the index by which a stream is found, so that what is in it is kept.
DROP INDEX sealed_kept;

DROP INDEX sealed_by_run;

CREATE INDEX sealed_by_run ON sealed (run) WHERE last >= 0;
