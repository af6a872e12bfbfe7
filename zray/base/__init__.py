"""Vocabulary: the words every other part of zray speaks. Imports nothing of zray but exceptions."""
