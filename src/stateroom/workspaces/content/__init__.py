"""The content store: trees of files by the hash of what is in them, each content kept once."""
