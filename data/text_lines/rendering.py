"""Text lines drawn as if printed: font size, slant, ink, paper, distortion, noise."""

import functools
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from data.files import require_file
from data.text_lines.distortion import blur, smooth_field, thicken, to_uint8, warp

_REFERENCE = 100.0  # Font size at which metrics are measured, pixels.
_SIZE_STEP = 0.5  # Fonts are kept by size; sizes are rounded to it.
_EDGE = 2  # Pixels around the drawn text, for what reaches over its advance width.
_UNDRAWABLE = "\U0010fffd"  # Private use: fonts draw the sign for a missing character.


@dataclass(frozen=True)
class LineStyle:
    """Properties of one drawn line; lengths are shares of the image's height.

    Attributes:
        fill: height of the font, from ascent to descent.
        stretch: factor of the width.
        margins: empty paper at the left and right.
        raised: distance of the text from the middle, positive upwards.
        slant: shear, pixels to the right for each pixel upwards.
        slope: rise of the baseline from the first to the last column.
        wave: amplitude of the baseline's drift.
        stroke: change of the strokes' width, -1..1 (``data.text_lines.distortion.thicken``).
        elastic: standard deviation of the elastic distortion.
        blur: standard deviation of the Gaussian.
        ink: grey level of full ink.
        paper: grey level of the paper.
        fading: standard deviation of the ink's coverage.
        texture: standard deviation of the paper's level over large spots, grey levels.
        noise: standard deviation of each pixel, grey levels.
        seed: of the distortion, texture and noise.
    """

    fill: float
    stretch: float
    margins: tuple[float, float]
    raised: float
    slant: float
    slope: float
    wave: float
    stroke: float
    elastic: float
    blur: float
    ink: float
    paper: float
    fading: float
    texture: float
    noise: float
    seed: int


def draw_style(rng: np.random.Generator) -> LineStyle:
    """Returns a random style, legible throughout."""
    fill = rng.uniform(0.74, 0.94)
    room = 0.5 * (1 - fill)  # Above and below the font.
    return LineStyle(
        fill=fill,
        stretch=rng.uniform(0.9, 1.05),
        margins=(rng.uniform(0.05, 0.2), rng.uniform(0.05, 0.2)),
        raised=rng.uniform(-1, 1) * room,
        slant=rng.uniform(-0.12, 0.25) if rng.random() < 0.5 else 0.0,
        slope=rng.uniform(-0.08, 0.08),
        wave=rng.uniform(0, 0.025),
        stroke=rng.uniform(-0.35, 0.7),
        elastic=rng.uniform(0, 0.018),
        blur=rng.uniform(0, 0.022),
        ink=rng.uniform(0, 80),
        paper=rng.uniform(190, 255),
        fading=rng.uniform(0, 0.1),
        texture=rng.uniform(0, 8),
        noise=rng.uniform(0, 8),
        seed=int(rng.integers(2**32)),
    )


def line_width(text: str, style: LineStyle, height: int, font: str = "") -> int:
    """Returns the width of a drawn line, pixels, at least 1, without drawing it."""
    return _Layout(text, style, height, font).width


def render_line(text: str, style: LineStyle, height: int, font: str = "") -> np.ndarray:
    """Returns a line of text as an image.

    Args:
        text: of one line.
        style: of the line.
        height: of the image, pixels, at least 8.
        font: file of a scalable font; empty: the one that Pillow carries.

    Returns:
        (height,W,1) uint8 in [0,255], dark ink on light paper.
    """
    layout = _Layout(text, style, height, font)
    width = layout.width
    rng = np.random.default_rng(style.seed)
    image = 255 - np.asarray(layout.draw(), np.float32)
    rows = np.arange(height, dtype=np.float32)
    columns = np.arange(width, dtype=np.float32)
    along = columns / max(width - 1, 1) - 0.5
    phase, length = rng.uniform(0, 2 * math.pi), height * rng.uniform(3, 8)
    rise = style.raised + style.slope * along
    rise = rise + style.wave * np.sin(2 * math.pi * columns / length + phase)
    ys = np.add.outer(rows, height * rise).astype(np.float32)
    # Upright at the middle of the line.
    lean = style.slant * (rows - height / 2)
    xs = np.add.outer(lean, columns - layout.left) / np.float32(style.stretch) + _EDGE
    xs = xs.astype(np.float32)
    if style.elastic:
        for places in (xs, ys):
            places += smooth_field(rng, height, width, height / 3, style.elastic * height)
    image = warp(image, xs, ys, 255)
    image = blur(thicken(image, style.stroke), style.blur * height)
    # Noise and small spots are drawn together, as one field of pixels would be slower by a half.
    spots = smooth_field(rng, height, width, height / 2, 1.0)
    cover = (255 - image) * (1 / 255)
    cover *= 1 - np.abs(spots) * np.float32(style.fading)
    paper = style.paper + spots * np.float32(style.texture)
    shown = paper + (np.float32(style.ink) - paper) * cover
    shown += rng.standard_normal(shown.shape, np.float32) * np.float32(style.noise)
    return to_uint8(shown)[..., None]


def undrawable(characters: str, font: str = "") -> str:
    """Returns those of the characters that a font has no picture of."""
    face = load_font(font, _REFERENCE)
    missing = _picture(face, _UNDRAWABLE)
    return "".join(c for c in characters if not c.isspace() and _picture(face, c) == missing)


@functools.lru_cache(maxsize=256)
def load_font(path: str, size: float) -> ImageFont.FreeTypeFont:
    """Returns a font at a size in pixels, the one that Pillow carries if the path is empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no scalable font, or Pillow was built without FreeType.
    """
    if not features.check("freetype2"):
        raise ValueError(
            "font: expected Pillow with FreeType, received one without; install it by: "
            "pip install --force-reinstall --only-binary=:all: pillow"
        )
    if path:
        require_file(path, "a scalable font (.ttf, .otf)")
        try:
            return ImageFont.truetype(path, size)
        except OSError as error:
            raise ValueError(
                f"font: expected a scalable font (.ttf, .otf), received {path} ({error})"
            ) from None
    found = ImageFont.load_default(_REFERENCE)
    assert isinstance(found, ImageFont.FreeTypeFont)  # As FreeType is there.
    # The same spacing on every machine, whether Pillow finds Raqm or not.
    content = io.BytesIO(found.font_bytes)
    return ImageFont.truetype(content, size, layout_engine=ImageFont.Layout.BASIC)


def _picture(face: ImageFont.FreeTypeFont, character: str) -> tuple[object, bytes]:
    mask = face.getmask(character)
    return mask.size, bytes(mask)


class _Layout:
    """Places of a line's text in its image, pixels."""

    def __init__(self, text: str, style: LineStyle, height: int, font: str):
        self.text, self.height = text, height
        ascent, descent = load_font(font, _REFERENCE).getmetrics()
        size = style.fill * height * _REFERENCE / (ascent + descent)
        self.face = load_font(font, max(_SIZE_STEP, round(size / _SIZE_STEP) * _SIZE_STEP))
        self.advance = self.face.getlength(text)
        lean = abs(style.slant) * height * style.fill / 2
        before, after = (lean + margin * height for margin in style.margins)
        self.left = before
        self.width = max(1, round(before + self.advance * style.stretch + after))

    def draw(self) -> Image.Image:
        """Returns the upright text, white on black, (height, advance + margins) in mode "L"."""
        ascent, descent = self.face.getmetrics()
        baseline = (self.height + ascent - descent) / 2
        size = max(1, math.ceil(self.advance)) + 2 * _EDGE
        image = Image.new("L", (size, self.height))
        ImageDraw.Draw(image).text((_EDGE, baseline), self.text, 255, self.face, anchor="ls")
        return image
