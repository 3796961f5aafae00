"""Features of frozen encoders and linear baselines on them."""
