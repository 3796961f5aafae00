"""Spatial layers that are fast on CPUs."""
