"""Saving, restoring and the directory of a run."""
