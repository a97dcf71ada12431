"""Other servers of the Responses API beside ours, in one run: the same model server, the same load, the same clocks."""
