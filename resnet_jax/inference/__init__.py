"""Trained networks at work: restored, applied and exported."""
