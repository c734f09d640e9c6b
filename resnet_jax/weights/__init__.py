"""Weight files: reading, recognising, loading and saving them.

The public functions are `resnet_jax.load_weights` and `resnet_jax.save_weights`. Reading a file
doesn't need JAX, so this file imports nothing.
"""
