"""Convolutions by oneDNN on a CPU, where `resnet-jax build` has compiled them; optional."""
