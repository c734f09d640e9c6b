"""Verification of a run by its documents and by training parts of it again."""
