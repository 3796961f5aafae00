"""Embedded video data set: moving shapes with captions, drawn on demand."""

from data.moving_shapes.captions import describe_scene, tells_motion
from data.moving_shapes.rendering import render
from data.moving_shapes.scenes import (
    CLASSES,
    REVERSED_CLASS,
    Background,
    Body,
    Scene,
    draw_scene,
)
from data.moving_shapes.source import SPLIT_SIZES, MovingShapes

__all__ = [
    "CLASSES",
    "REVERSED_CLASS",
    "SPLIT_SIZES",
    "Background",
    "Body",
    "MovingShapes",
    "Scene",
    "describe_scene",
    "draw_scene",
    "render",
    "tells_motion",
]
