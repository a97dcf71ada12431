"""MCP servers that clients name: listing their tools, calling them. Not the agent loop, which decides when."""
