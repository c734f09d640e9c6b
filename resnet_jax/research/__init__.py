"""Papers by one command, sweeps, and comparisons of runs."""
