"""Tests with real processes, through the public API."""
