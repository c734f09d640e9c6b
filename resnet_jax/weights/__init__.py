"""Weights that others trained: read with suspicion, recognised, loaded; and saved for others.

The functions are `resnet_jax.load_weights` and `resnet_jax.save_weights`. Reading a file needs no
JAX, so nothing is imported here.
"""
