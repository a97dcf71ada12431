"""Programmatic tool calling: JavaScript that a model wrote, in a process of its own. docs/why/programs.md."""
