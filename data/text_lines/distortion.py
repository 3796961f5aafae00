"""Operations on images of lines: warps, blur, stroke width, smooth random fields; NumPy alone.

Images are (H,W) float32 in grey levels; 0 is black. None of the operations rounds or clips.
"""

import math

import numpy as np


def warp(image: np.ndarray, xs: np.ndarray, ys: np.ndarray, fill: float) -> np.ndarray:
    """Samples an image at given places, bilinearly.

    Args:
        image: (H,W) float32.
        xs: (H',W') float32, the column of the image that each pixel of the result shows; places
            between columns are interpolated.
        ys: (H',W') float32, likewise the row.
        fill: value outside of the image.

    Returns:
        (H',W') float32.
    """
    height, width = image.shape
    padded = np.full((height + 2, width + 3), fill, np.float32)
    padded[1:-1, 1 : width + 1] = image
    xs = np.clip(xs + 1, 0, width + 1)
    ys = np.clip(ys + 1, 0, height + 0.999)
    left, top = xs.astype(np.intp), ys.astype(np.intp)
    xs -= left
    ys -= top
    stride = width + 3
    first = top * stride + left
    flat = padded.ravel()
    upper = flat[first]
    upper += xs * (flat[first + 1] - upper)
    first += stride
    lower = flat[first]
    lower += xs * (flat[first + 1] - lower)
    lower -= upper
    lower *= ys
    upper += lower
    return upper


def smooth_field(
    rng: np.random.Generator, height: int, width: int, spacing: float, strength: float
) -> np.ndarray:
    """Returns smooth random values (height,width) float32 around 0.

    Independent normal values of standard deviation ``strength`` on a grid are interpolated by
    cubic weights, so that neither the values nor their slopes have jumps.

    Args:
        rng: random numbers.
        height: rows.
        width: columns.
        spacing: distance of the grid's nodes, pixels.
        strength: standard deviation of the nodes.
    """
    rows, columns = (max(2, math.ceil(size / spacing) + 1) for size in (height, width))
    nodes = rng.standard_normal((rows, columns), np.float32) * np.float32(strength)
    # The grid starts at a random place, so that no column always is a node.
    across = _interpolate(nodes.T, width, spacing, rng.random())  # (width,rows)
    return _interpolate(across.T, height, spacing, rng.random())


def _interpolate(nodes: np.ndarray, size: int, spacing: float, offset: float) -> np.ndarray:
    """Returns (size,...) float32 of nodes (n,...) whose distance is ``spacing``."""
    places = np.minimum(np.arange(size) / spacing + offset, len(nodes) - 1.001)
    before = places.astype(np.intp)
    share = (places - before).astype(np.float32)
    share = (share * share * (3 - 2 * share)).reshape(-1, *[1] * (nodes.ndim - 1))
    lower = nodes[before]
    return lower + share * (nodes[before + 1] - lower)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Returns an image (H,W) float32 under a Gaussian of ``sigma`` pixels, edges repeated."""
    radius = math.ceil(2.5 * sigma)
    if radius < 1:
        return image
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    for axis in (0, 1):
        widths = [(0, 0), (0, 0)]
        widths[axis] = (radius, radius)
        padded = np.pad(image, widths, "edge")
        size = image.shape[axis]

        def shifted(by: int, padded: np.ndarray = padded, axis: int = axis, size: int = size):  # type: ignore[no-untyped-def]
            window = slice(radius + by, radius + by + size)
            return padded[window] if axis == 0 else padded[:, window]

        result = shifted(0) * np.float32(weights[0])
        for by in range(1, radius + 1):
            result += np.float32(weights[by]) * (shifted(by) + shifted(-by))
        image = result
    return image


def thicken(image: np.ndarray, amount: float) -> np.ndarray:
    """Returns an image whose dark strokes are thicker, or thinner for a negative amount.

    Args:
        image: (H,W) float32.
        amount: -1..1, share of the minimum (or maximum) over each pixel and its four neighbours, in
            the mean with the image; 1 widens strokes by a pixel on each side.

    Returns:
        (H,W) float32.
    """
    choose = np.minimum if amount > 0 else np.maximum
    extreme = image.copy()
    choose(extreme[1:], image[:-1], out=extreme[1:])
    choose(extreme[:-1], image[1:], out=extreme[:-1])
    choose(extreme[:, 1:], image[:, :-1], out=extreme[:, 1:])
    choose(extreme[:, :-1], image[:, 1:], out=extreme[:, :-1])
    extreme -= image
    extreme *= np.float32(abs(amount))
    extreme += image
    return extreme


def median_level(image: np.ndarray) -> int:
    """Returns the median of a uint8 image, of a line its paper; faster than ``np.median``."""
    counts = np.bincount(image.ravel(), minlength=256).cumsum()
    return int(np.searchsorted(counts, counts[-1] / 2))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Returns an image, rounded and clipped to uint8."""
    return np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)
