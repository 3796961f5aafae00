"""Renderer of the embedded data set: anti-aliased signed distances, all frames at once."""

import numpy as np

from data.moving_shapes.scenes import (
    IMAGE_SIZE,
    NUM_FRAMES,
    Background,
    Body,
    Scene,
)

_GRAIN = 0.25  # share of pixel noise in a background's texture


def render(scene: Scene) -> np.ndarray:
    """Renders all frames of a scene.

    Args:
      scene: the scene.

    Returns:
      (T,H,W,3) uint8 in [0,255], T = 16, H = W = 64.
    """
    target = coverage(scene.target)  # (T,H,W)
    distractor = coverage(scene.distractor) * (1 - target)
    empty = 1 - target - distractor
    background = _draw_background(scene.background)  # (H,W,3)
    video = np.empty((NUM_FRAMES, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    for channel in range(3):
        plane = empty * background[..., channel]
        plane += distractor * np.float32(scene.distractor.rgb[channel])
        plane += target * np.float32(scene.target.rgb[channel])
        plane += 0.5  # the conversion to integers truncates
        video[..., channel] = plane
    return video


def coverage(body: Body) -> np.ndarray:
    """Returns the share of each pixel that a body covers.

    Args:
      body: the body; the picture is a torus.

    Returns:
      (T,H,W) float32 in [0,1]: 0.5 minus the signed distance to the outline, clipped, which is one
      pixel of anti-aliasing.
    """
    states = body.trajectory()  # (T,3)
    pixels = np.arange(IMAGE_SIZE, dtype=np.float32) + np.float32(0.5)
    dx = _wrapped_difference(pixels, states[:, 0])[:, None, :]  # (T,1,W)
    dy = _wrapped_difference(pixels, states[:, 1])[:, :, None]  # (T,H,1)
    distance = _signed_distance(body.shape, dx, dy, states[:, 2, None, None])  # (T,H,W)
    return np.clip(np.float32(0.5) - distance, 0, 1)


def _wrapped_difference(pixels: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns the shortest signed distance to each pixel on a circle of 64, (T,64) float32."""
    half = IMAGE_SIZE // 2
    return (pixels[None, :] - positions[:, None] + half) % IMAGE_SIZE - half


def _signed_distance(shape: str, dx: np.ndarray, dy: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Returns signed distances to the outline of a shape, in pixels.

    Its area is about that of a disc of ``radius``. Distances are exact along edges; beyond corners
    they are too small, which sharpens the corners.
    """
    match shape:
        case "circle":
            return np.sqrt(dx**2 + dy**2) - radius
        case "square":
            return np.maximum(np.abs(dx), np.abs(dy)) - 0.886 * radius
        case "triangle":
            slanted = np.float32(0.866) * np.abs(dx) - np.float32(0.5) * dy
            return np.maximum(slanted, dy) - 0.778 * radius
        case "diamond":
            return np.float32(0.7071) * (np.abs(dx) + np.abs(dy)) - 0.886 * radius
        case "cross":
            long, short = 1.2 * radius, 0.45 * radius
            across = np.maximum(np.abs(dx) - long, np.abs(dy) - short)
            return np.minimum(across, np.maximum(np.abs(dx) - short, np.abs(dy) - long))
        case "ring":
            return np.abs(np.sqrt(dx**2 + dy**2) - 0.85 * radius) - 0.3 * radius
    raise ValueError(f"shape: expected a known shape, received {shape!r}")


def _draw_background(background: Background) -> np.ndarray:
    """Returns the background, (H,W,3) float32 in [0,255]."""
    rng = np.random.default_rng(background.noise_seed)
    grain = rng.random((IMAGE_SIZE, IMAGE_SIZE), np.float32)
    weight = (1 - _GRAIN) * _draw_pattern(background, rng) + _GRAIN * grain
    first, second = np.asarray(background.rgb, np.float32)
    return first + weight[..., None] * (second - first)


def _draw_pattern(background: Background, rng: np.random.Generator) -> np.ndarray:
    """Returns the pattern of a texture, (H,W) float32 in [0,1]."""
    pixels = np.arange(IMAGE_SIZE, dtype=np.float32)
    if background.texture == "blotches":
        knots = pixels / background.period
        cells = knots.astype(int)
        step = knots - cells
        values = rng.random((cells[-1] + 2, cells[-1] + 2), np.float32)
        rows = values[cells] * (1 - step)[:, None] + values[cells + 1] * step[:, None]
        return rows[:, cells] * (1 - step) + rows[:, cells + 1] * step
    cos, sin = np.cos(background.angle), np.sin(background.angle)
    frequency = np.float32(np.pi / background.period)
    along = np.sin(frequency * (cos * pixels[None, :] + sin * pixels[:, None]), dtype=np.float32)
    if background.texture == "stripes":
        return 0.5 + 0.5 * along
    across = np.sin(frequency * (cos * pixels[:, None] - sin * pixels[None, :]), dtype=np.float32)
    return 0.5 + 0.5 * along * across
