"""The way out of sandboxes: a proxy for each live workspace, which lets through what its network policy lists."""
