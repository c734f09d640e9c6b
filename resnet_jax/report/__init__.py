"""A page that shows runs: curves, scores, configs, mistakes, and where time went."""
