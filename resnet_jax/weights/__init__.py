"""Weights that others trained: their files, read with suspicion."""
