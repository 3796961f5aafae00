"""Configuration that the experiments on sequences and series share."""
