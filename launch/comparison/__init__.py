"""Comparisons of families of networks over tasks: the study, its cells, order probes, the page."""
