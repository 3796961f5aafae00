"""Heads: maps over time to class scores or words."""
