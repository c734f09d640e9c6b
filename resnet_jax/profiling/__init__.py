"""Speed and cost of programs: measured here, or compiled for devices elsewhere."""
