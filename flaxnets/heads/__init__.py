"""Heads: logits of each step or of a clip, and pooling over time."""

from flaxnets.heads.classifier import ClipClassifier, Pooling, StepClassifier
from flaxnets.heads.config import HEADS, HeadConfig, make_head
from flaxnets.heads.pooling import (
    AttentionPooling,
    pool_concatenate,
    pool_last,
    pool_max,
    pool_mean,
)

__all__ = [
    "HEADS",
    "AttentionPooling",
    "ClipClassifier",
    "HeadConfig",
    "Pooling",
    "StepClassifier",
    "make_head",
    "pool_concatenate",
    "pool_last",
    "pool_max",
    "pool_mean",
]
