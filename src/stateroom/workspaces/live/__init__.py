"""The live set: folders, processes and interpreters of the workspaces that are at work."""
