"""Experiments: one file for each paper or study, with its command, results and deviations."""
