"""Records of a run: metrics.jsonl, console, figures, summary."""
