"""For operators: nothing else in zray imports it."""
