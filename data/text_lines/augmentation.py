"""Random distortion of line images in training."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from data.text_lines.distortion import blur, median_level, smooth_field, thicken, to_uint8, warp


@dataclass(frozen=True)
class LineAugmentation:
    """Random distortion of the ``image`` of a line, a ``Loader``'s ``transform``; picklable.

    Each distortion has a strength and a rate, the probability with which an image gets it; what is
    drawn lies between 0 and the strength, or between its negative and it. Lengths in pixels are
    shares of the image's height. All warps are one interpolation. The paper, the median of the
    image, fills what comes in from outside.

    Only ``stretch`` changes the width of a line, by a factor of at most ``max_stretch``, and
    ``lengths`` follows; it never changes the tokens.

    Attributes:
        slant: greatest shear, pixels to the side for each pixel of height.
        stretch: greatest change of the width as a share of it, in [0,0.5].
        shift: greatest shift up or down.
        elastic: standard deviation of a displacement that varies smoothly over the image, within
            letters and between them.
        stroke: greatest change of the width of strokes, 0..1; 1 widens them by a pixel on each side
            (``data.text_lines.distortion.thicken``), or makes them thinner.
        blur: greatest standard deviation of a Gaussian.
        contrast: greatest share by which the difference of ink and paper shrinks, and also the
            greatest share of it by which all pixels are darker or brighter.
        noise: greatest standard deviation of Gaussian noise, grey levels of 255.
        slant_rate: probability, 0..1; likewise the others.

    Raises:
        ValueError: a strength or rate out of its range.
    """

    slant: float = 0.15
    slant_rate: float = 0.5
    stretch: float = 0.1
    stretch_rate: float = 0.5
    shift: float = 0.05
    shift_rate: float = 0.5
    elastic: float = 0.02
    elastic_rate: float = 0.5
    stroke: float = 0.5
    stroke_rate: float = 0.5
    blur: float = 0.02
    blur_rate: float = 0.3
    contrast: float = 0.3
    contrast_rate: float = 0.3
    noise: float = 12.0
    noise_rate: float = 0.3

    def __post_init__(self) -> None:
        most = {"stretch": 0.5, "stroke": 1.0, "contrast": 1.0}
        for field in fields(self):
            value = getattr(self, field.name)
            high = 1.0 if field.name.endswith("_rate") else most.get(field.name, math.inf)
            if not 0 <= value <= high:
                bound = "at least 0" if high == math.inf else f"0 to {high:g}"
                raise ValueError(f"{field.name}: expected {bound}, received {value}")

    @property
    def max_stretch(self) -> float:
        """Greatest factor by which a line becomes wider, at least 1."""
        return 1 + self.stretch if self.stretch_rate else 1.0

    def __call__(self, example: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Returns the example with another ``image`` (H,W',1) uint8, and ``lengths`` = W'.

        What lies right of ``lengths`` is cut off. An example with ``mask`` False stays as it is.

        Args:
            example: of a line, with ``image`` (H,W,1) uint8 and ``lengths`` <= W.
            rng: random numbers, on which alone the distortion depends.
        """
        if not example["mask"]:
            return dict(example)
        pixels: np.ndarray = example["image"][:, : int(example["lengths"]), 0]
        height = pixels.shape[0]
        paper = float(median_level(pixels))
        image = self._warped(pixels, paper, rng)
        if rng.random() < self.stroke_rate:
            image = thicken(image, self.stroke * rng.uniform(-1, 1))
        if rng.random() < self.blur_rate:
            image = blur(image, self.blur * height * rng.random())
        if rng.random() < self.contrast_rate:
            gain = 1 - self.contrast * rng.random()
            # The ink is about as far from the paper as the far end of the range.
            offset = self.contrast * rng.uniform(-1, 1) * max(paper, 255 - paper) * 0.5
            image = paper + offset + gain * (image - paper)
        if rng.random() < self.noise_rate:
            strength = np.float32(self.noise * rng.random())
            image = image + strength * rng.standard_normal(image.shape, np.float32)
        result = to_uint8(image)[..., None]
        return {**example, "image": result, "lengths": np.asarray(result.shape[1], np.int32)}

    def _warped(self, pixels: np.ndarray, paper: float, rng: np.random.Generator) -> np.ndarray:
        """Returns the line (H,W') float32 after slant, stretch, shift and elastic distortion."""
        height, width = pixels.shape
        drawn = [
            strength * rng.uniform(-1, 1) if rng.random() < rate else 0.0
            for strength, rate in (
                (self.slant, self.slant_rate),
                (self.stretch, self.stretch_rate),
                (self.shift * height, self.shift_rate),
            )
        ]
        slant, stretch, shift = drawn
        elastic = self.elastic * height if rng.random() < self.elastic_rate else 0.0
        image = pixels.astype(np.float32)
        if not any((*drawn, elastic)):
            return image
        target = max(1, round(width * (1 + stretch)))
        # A slanted line needs more columns; it is condensed into those that there are.
        margin = abs(slant) * height / 2
        columns = (np.arange(target) + 0.5) * ((width + 2 * margin) / target) - margin - 0.5
        rows = np.arange(height) - (height - 1) / 2
        xs = np.add.outer(slant * rows, columns).astype(np.float32)
        ys = np.repeat((np.arange(height, dtype=np.float32) - shift)[:, None], target, axis=1)
        if elastic:
            spacing = height / 3
            xs += smooth_field(rng, height, target, spacing, elastic)
            ys += smooth_field(rng, height, target, spacing, elastic)
        return warp(image, xs, ys.astype(np.float32), paper)
