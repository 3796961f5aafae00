"""Hybrid spatio-temporal models in JAX and Flax: encoders see space, recurrent cells see time."""
