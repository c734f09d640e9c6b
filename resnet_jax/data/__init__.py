"""From data sets to batches on the devices."""
