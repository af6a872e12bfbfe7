"""Real processes that are killed and stopped at random, and work whose answer is known."""
