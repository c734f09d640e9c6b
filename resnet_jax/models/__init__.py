"""The networks: pure linen, without I/O, configs or devices."""
