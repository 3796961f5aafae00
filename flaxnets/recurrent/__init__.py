"""Recurrent cells and the layers that scan them over time."""
