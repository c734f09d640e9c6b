"""Preparation of data sets."""
