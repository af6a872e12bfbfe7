"""Bodies' tools: what touches the operating system. Nothing here decides anything, and nothing here knows ``core``."""
