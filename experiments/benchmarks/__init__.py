"""Benchmarks of speed and memory against other libraries, measured side by side in one run."""
