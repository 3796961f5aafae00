"""Images of text lines, decoded to grey of one height, as examples of a text recogniser."""

import functools
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from data.batches import TranscriptExample
from data.captions.images import FORMATS, ImageError, read_image
from data.files import open_file
from data.loader import describe_examples
from data.text_lines.alphabet import Alphabet, check_texts, normalise
from data.text_lines.distortion import median_level

MAX_WIDTH = 4096
"""Default greatest width of a line after scaling, pixels; of lines 48 pixels high about 200
characters of print."""
_ROTATED = range(5, 9)  # EXIF orientations that exchange height and width.
_ORIENTATION = 0x0112
# Where a PNG tells its orientation; Pillow would decode all pixels to find that there is none.
_PNG_ORIENTATIONS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


@dataclass(frozen=True)
class LineSource:
    """Random access to line images and their texts, scaled to one height; picklable.

    The aspect ratio is kept, and the resampling (Lanczos) antialiased. An image that cannot be
    decoded, or is wider than ``max_width``, becomes an example of one black column with ``mask``
    False and no tokens; ``explain`` says why.

    Attributes:
        paths: the images.
        texts: of each; composed (NFC) before they are encoded.
        alphabet: characters with their ids.
        height: of all examples, pixels.
        max_width: greatest width of a line after scaling, pixels.
        polarity: "dark" ink is kept; "light" ink is inverted, so that models always see dark ink on
            light paper; "auto" inverts the images whose median is below 128.
        unknown: treatment of characters that the alphabet lacks: "error", or "drop" to leave them
            out of ``tokens``.

    Raises:
        ValueError: other numbers of texts and paths, no lines, a number out of range, an unknown
            polarity, or texts with characters that the alphabet lacks, which are named.
    """

    paths: tuple[str, ...]
    texts: tuple[str, ...]
    alphabet: Alphabet
    height: int = 48
    max_width: int = MAX_WIDTH
    polarity: Literal["dark", "light", "auto"] = "dark"
    unknown: Literal["error", "drop"] = "error"

    def __post_init__(self) -> None:
        if len(self.paths) != len(self.texts) or not self.paths:
            raise ValueError(
                f"texts: expected one for each of the paths, at least one, received "
                f"{len(self.texts)} for {len(self.paths)} paths"
            )
        for name in ("height", "max_width"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name}: expected at least 1 pixel, received {getattr(self, name)}"
                )
        for name, known in (
            ("polarity", ("dark", "light", "auto")),
            ("unknown", ("error", "drop")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}: expected one of {', '.join(known)}, received {getattr(self, name)!r}"
                )
        if self.unknown == "error":
            check_texts(self.texts, self.alphabet)

    def __len__(self) -> int:
        return len(self.paths)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"LineSource({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON."""
        return {
            **describe_examples(self.paths, self.texts),
            "height": self.height,
            "max_width": self.max_width,
            "polarity": self.polarity,
            "characters": len(self.alphabet),
        }

    @functools.cached_property
    def unknown_characters(self) -> dict[str, int]:
        """Characters of the texts that the alphabet lacks -> their number."""
        return self.alphabet.unknown(self.texts)

    def __getitem__(self, index: int, /) -> TranscriptExample:
        """Decodes line ``index``.

        Returns:
            ``image`` (height,W,1) uint8 in [0,255], ``lengths`` () int32 = W, ``tokens`` (L,) int32
            in 1..K, ``token_lengths``, ``mask``, ``index``.
        """
        try:
            image, tokens, readable = self._decode(index), self._tokens(index), True
        except (ImageError, FileNotFoundError):
            image, tokens, readable = _blank(self.height), np.zeros(0, np.int32), False
        return TranscriptExample(
            image=image,
            lengths=np.asarray(image.shape[1], np.int32),
            tokens=tokens,
            token_lengths=np.asarray(len(tokens), np.int32),
            mask=np.asarray(readable),
            index=np.asarray(index, np.int32),
        )

    def explain(self, index: int) -> str:
        """Returns why line ``index`` cannot be decoded."""
        try:
            self._decode(index)
        except (ImageError, FileNotFoundError) as error:
            return str(error)
        return f"{self.paths[index]}: decoding failed before, but succeeds now"

    def lengths(self) -> np.ndarray:
        """Returns the width of each example, (N,) int32 >= 1, from the headers of the images.

        It is exact for images that can be decoded; the example of another one has a single column.
        """
        return self._lengths.copy()

    def token_lengths(self) -> np.ndarray:
        """Returns the number of characters of each text, (N,) int32 >= 0."""
        return np.array([len(self._tokens(index)) for index in range(len(self))], np.int32)

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        found = [header_width(path, self.height) for path in self.paths]
        return np.array([width if width <= self.max_width else 1 for width in found], np.int32)

    def _tokens(self, index: int) -> np.ndarray:
        text = normalise(self.texts[index])
        if self.unknown_characters:
            text = "".join(character for character in text if character in self.alphabet)
        return self.alphabet.encode(text)

    def _decode(self, index: int) -> np.ndarray:
        """Returns the grey image (height,W,1) uint8 of a line."""
        path = self.paths[index]
        return scale_line(
            read_image(path),
            self.height,
            max_width=self.max_width,
            polarity=self.polarity,
            name=path,
        )


def scale_line(
    image: np.ndarray,
    height: int,
    *,
    max_width: int = MAX_WIDTH,
    polarity: str = "dark",
    name: str = "image",
) -> np.ndarray:
    """Returns a line as grey of one height, with its aspect ratio.

    Args:
        image: (H,W,3) or (H,W,1) uint8 in [0,255].
        height: of the result, pixels.
        max_width: greatest width of the result, pixels.
        polarity: as ``LineSource.polarity``.
        name: of the image, for the error.

    Returns:
        (height,W',1) uint8 in [0,255].

    Raises:
        ImageError: the result would be wider than ``max_width``.
    """
    width = scaled_width(image.shape[1], image.shape[0], height)
    if width > max_width:
        raise ImageError(
            name,
            f"expected a line of at most {max_width} columns at a height of {height} pixels, "
            f"received {image.shape[1]} × {image.shape[0]}, which makes {width}; cut the line, or "
            "give a larger max_width",
        )
    grey = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).convert("L")
    if polarity == "light" or (polarity == "auto" and median_level(np.asarray(grey)) < 128):
        grey = ImageOps.invert(grey)
    if grey.size != (width, height):
        grey = grey.resize((width, height), Image.Resampling.LANCZOS)
    return np.array(grey)[..., None]


def scaled_width(width: int, height: int, target: int) -> int:
    """Returns the width of an image of ``width`` × ``height`` at the height ``target``, >= 1."""
    return max(1, round(width * target / height))


def header_width(path: str, height: int) -> int:
    """Returns the width of an image scaled to a height, from its header; 1 if it has none."""
    try:
        with warnings.catch_warnings():
            # Of large images, which are refused when they are decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_file(path) as file, Image.open(file, formats=FORMATS) as image:
                size = image.size
                if (
                    image.format != "PNG" or _mentions(path, _PNG_ORIENTATIONS)
                ) and image.getexif().get(_ORIENTATION) in _ROTATED:
                    size = size[::-1]
    except Exception:  # Pillow's parsers raise almost anything on damaged files.
        return 1
    return scaled_width(*size, height)


def _mentions(path: str, markers: tuple[bytes, ...]) -> bool:
    with open_file(path) as file:
        content = file.read()
    return any(marker in content for marker in markers)


def _blank(height: int) -> np.ndarray:
    return np.zeros((height, 1, 1), np.uint8)
