"""Inference with trained models and their export."""
