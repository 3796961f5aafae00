"""The embedded data set: moving shapes with captions."""
