"""Heads: temporal pooling and classifiers."""
