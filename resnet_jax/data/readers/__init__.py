"""Readers of data sets: prepared TFDS folders, and folders of images."""
