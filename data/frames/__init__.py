"""Sequences of frames: moving digits, bouncing balls, windows of videos, fields."""

from data.frames.bouncing_balls import BouncingBalls
from data.frames.moving_mnist import MovingMNIST, MovingMNISTFile, read_digits
from data.frames.sequences import SPLITS, FrameSource, GeneratedSequences, frame_example

__all__ = [
    "SPLITS",
    "BouncingBalls",
    "FrameSource",
    "GeneratedSequences",
    "MovingMNIST",
    "MovingMNISTFile",
    "frame_example",
    "read_digits",
]
