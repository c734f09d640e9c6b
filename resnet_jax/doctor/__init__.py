"""Whether a machine is fit for a run."""
