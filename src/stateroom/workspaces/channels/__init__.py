"""The server's ends of the programs that run inside a sandbox: the agent, its processes, the Python kernel."""
