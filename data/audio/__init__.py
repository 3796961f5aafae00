"""Sound: reading, log-mel spectrograms."""
