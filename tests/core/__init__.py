"""One file per machine: events in, effects out, and the machine's own invariants after each event."""
