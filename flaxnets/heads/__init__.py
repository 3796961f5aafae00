"""Heads: logits of each step or of a clip, and pooling over time."""

from flaxnets.heads.classifier import ClipClassifier, Pooling, StepClassifier
from flaxnets.heads.pooling import AttentionPooling, pool_last, pool_max, pool_mean

__all__ = [
    "AttentionPooling",
    "ClipClassifier",
    "Pooling",
    "StepClassifier",
    "pool_last",
    "pool_max",
    "pool_mean",
]
