"""Images of lines as examples: sizes, modes, polarity, what cannot be decoded."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.text_lines.alphabet import Alphabet
from data.text_lines.line_images import LineSource, scaled_width

ALPHABET = Alphabet.from_texts(["abc é"])


def save(path: Path, image: Image.Image, **options: Any) -> str:
    image.save(path, **options)
    return str(path)


def line(width: int = 40, height: int = 16) -> Image.Image:
    """A dark bar on white, left of the middle."""
    pixels = np.full((height, width), 255, np.uint8)
    pixels[height // 4 : -height // 4, width // 8 : width // 4] = 17
    return Image.fromarray(pixels)


def source(*paths: str, **options: Any) -> LineSource:
    return LineSource(paths, ("ab",) * len(paths), ALPHABET, **{"height": 16, **options})


def test_an_example(tmp_path: Path) -> None:
    examples = LineSource((save(tmp_path / "a.png", line()),), ("e\u0301a b",), ALPHABET, height=8)
    example = examples[0]
    assert example["image"].shape == (8, 20, 1)
    assert example["image"].dtype == np.uint8
    assert example["lengths"] == 20 == examples.lengths()[0]
    assert ALPHABET.decode(example["tokens"]) == "éa b"
    assert example["token_lengths"] == 4 == examples.token_lengths()[0]
    assert example["mask"]
    assert example["index"] == 0
    for name in ("lengths", "tokens", "token_lengths", "index"):
        assert example[name].dtype == np.int32
    again = pickle.loads(pickle.dumps(examples))
    assert repr(again) == repr(examples)
    np.testing.assert_array_equal(again[0]["image"], example["image"])


def test_modes_of_colour_show_the_same_line(tmp_path: Path) -> None:
    grey = line()
    expected = np.asarray(grey)
    clear = Image.new("LA", grey.size, (0, 0))
    clear.putalpha(Image.fromarray(255 - expected))  # Black ink on nothing.
    wide = Image.fromarray(expected.astype(np.uint16) * 257)
    turned = grey.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # Shown after a turn by 90 degrees clockwise.
    paths = [
        save(tmp_path / "grey.png", grey),
        save(tmp_path / "palette.png", grey.convert("P")),
        save(tmp_path / "alpha.png", clear),
        save(tmp_path / "16.png", wide),
        save(tmp_path / "one.png", grey.point(lambda x: 255 * (x > 99)).convert("1")),
        save(tmp_path / "turned.png", turned, exif=exif),
        save(tmp_path / "cmyk.tif", grey.convert("RGB").convert("CMYK")),
        save(tmp_path / "rgb.jpg", grey.convert("RGB"), quality=95),
    ]
    examples = source(*paths)
    assert examples.lengths().tolist() == [40] * len(paths)
    for number, path in enumerate(paths):
        image = examples[number]["image"][..., 0].astype(int)
        assert image.shape == (16, 40), path
        # Ink of 17 is 0 where it is black by alpha or has one bit; JPEG and CMYK round.
        assert np.abs(image - expected).max() <= (17 if number in (2, 4) else 12), path


def test_light_ink_is_inverted_where_it_is_said(tmp_path: Path) -> None:
    dark = np.asarray(line())[..., None]
    path = save(tmp_path / "a.png", Image.fromarray(255 - dark[..., 0]))
    np.testing.assert_array_equal(source(path)[0]["image"], 255 - dark)
    for polarity in ("light", "auto"):
        np.testing.assert_array_equal(source(path, polarity=polarity)[0]["image"], dark)
    path = save(tmp_path / "b.png", line())
    np.testing.assert_array_equal(source(path, polarity="auto")[0]["image"], dark)


def test_downscaling_is_antialiased(tmp_path: Path) -> None:
    stripes = np.zeros((64, 640), np.uint8)
    stripes[:, ::2] = 255
    image = source(save(tmp_path / "a.png", Image.fromarray(stripes)), height=8)[0]["image"]
    assert np.abs(image.astype(int) - 127).max() < 20


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 48), (1, 300), (3, 200), (7, 48)])
def test_narrow_lines_have_a_column(tmp_path: Path, width: int, height: int) -> None:
    examples = source(save(tmp_path / "a.png", Image.new("L", (width, height))), height=48)
    example = examples[0]
    assert example["image"].shape == (48, scaled_width(width, height, 48), 1)
    assert example["lengths"] == examples.lengths()[0] >= 1
    assert example["mask"]


def test_what_cannot_be_read_is_masked_and_explained(tmp_path: Path) -> None:
    long = save(tmp_path / "long.png", Image.new("L", (20_000, 16), 255))
    whole = (tmp_path / "long.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    paths = [long, *(str(tmp_path / name) for name in ("half.png", "text.png", "none.png"))]
    examples = source(*paths)
    reasons = (
        "expected a line of at most 4096 columns at a height of 16 pixels, received 20000 × 16, "
        "which makes 20000; cut the line, or give a larger max_width",
        "half.png: ",
        "no image in a format that is read",
        "does not exist",
    )
    for number, reason in enumerate(reasons):
        example = examples[number]
        assert not example["mask"]
        assert example["image"].shape == (16, 1, 1)
        assert not example["image"].any()
        assert example["lengths"] == 1
        assert example["token_lengths"] == len(example["tokens"]) == 0
        assert reason in examples.explain(number)
    assert examples.lengths().tolist() == [1, 1, 1, 1]
    assert source(long, max_width=20_000)[0]["lengths"] == 20_000


def test_characters_that_the_alphabet_lacks(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", line())
    texts = ("abc", "xa x", "yy")
    with pytest.raises(ValueError, match=r"received 2 others in 2 of 3 texts: 'x' \(U\+0078\) 2 t"):
        LineSource((path,) * 3, texts, ALPHABET)
    examples = LineSource((path,) * 3, texts, ALPHABET, unknown="drop")
    assert examples.unknown_characters == {"x": 2, "y": 2}
    assert examples.token_lengths().tolist() == [3, 2, 0]
    assert ALPHABET.decode(examples[1]["tokens"]) == "a "


@pytest.mark.parametrize(
    "options", [{"height": 0}, {"max_width": 0}, {"polarity": "white"}, {"unknown": "skip"}]
)
def test_bad_arguments_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        source("a.png", **options)
    with pytest.raises(ValueError, match="texts: expected one for each"):
        source()
