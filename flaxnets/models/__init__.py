"""Compositions of encoders, recurrent layers and decoders, and nothing else."""
