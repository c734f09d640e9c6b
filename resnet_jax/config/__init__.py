"""The config of a run: fields, defaults, checks and recipes."""
