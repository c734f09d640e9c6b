"""Is this machine fit for a run? Small checks, each of which yields findings."""
