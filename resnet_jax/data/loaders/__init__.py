"""Batches of training examples."""
