"""Sequences of frames: moving digits, bouncing balls, windows of videos, fields."""

from data.frames.bouncing_balls import BouncingBalls
from data.frames.fields import FieldFile, Fields, FieldWindows, read_last_fields
from data.frames.moving_mnist import MovingMNIST, MovingMNISTFile, read_digits
from data.frames.sequences import SPLITS, FrameSource, GeneratedSequences, frame_example
from data.frames.video_windows import (
    FrameFormat,
    Section,
    Videos,
    VideoWindows,
    find_videos,
    split_videos,
)

__all__ = [
    "SPLITS",
    "BouncingBalls",
    "FieldFile",
    "FieldWindows",
    "Fields",
    "FrameFormat",
    "FrameSource",
    "GeneratedSequences",
    "MovingMNIST",
    "MovingMNISTFile",
    "Section",
    "VideoWindows",
    "Videos",
    "find_videos",
    "frame_example",
    "read_digits",
    "read_last_fields",
    "split_videos",
]
