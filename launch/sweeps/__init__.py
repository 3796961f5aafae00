"""Hyper-parameter searches."""
