"""Jobs of schedulers and clouds."""
