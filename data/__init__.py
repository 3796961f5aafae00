"""From files to batches of NumPy arrays: no JAX and no flaxnets in here."""
