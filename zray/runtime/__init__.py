"""The processes: a brain and its tools each. Nothing here decides anything."""
