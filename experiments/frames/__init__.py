"""Configuration and data that the experiments on frame prediction share."""
