"""The real brains in a simulated world: virtual time, links that delay and reorder, processes that die."""
