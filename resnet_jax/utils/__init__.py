"""What no other package depends on the meaning of: paths, streams, processes, caches."""
