"""What goes on inside a network while it trains, measured on a probe batch outside the step."""
