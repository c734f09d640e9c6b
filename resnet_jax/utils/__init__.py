"""Paths, files, streams, processes, memory and caches, independent of the rest of the package."""
