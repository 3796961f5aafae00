"""Flickr8k: photographs with five captions each, as published or as on Kaggle.

Hodosh, Young and Hockenmaier, 2013, Journal of Artificial Intelligence Research 47::

    Flicker8k_Dataset/NAME.jpg
    Flickr8k_text/Flickr8k.token.txt           "NAME.jpg#0<tab>A child in a pink dress ..."
    Flickr8k_text/Flickr_8k.trainImages.txt    "NAME.jpg"; also devImages, testImages

Kaggle's copies have other files and no lists of the splits::

    Images/NAME.jpg
    captions.txt    "image,caption", then "NAME.jpg,A child in a pink dress ..." (CSV)
"""

import csv
import hashlib
import logging
from pathlib import Path

from data.datasets.captioned_images import (
    CaptionedImages,
    Missing,
    find_split,
    first_few,
    keep_present,
)
from data.files import normal_name, read_lines

logger = logging.getLogger(__name__)

NUM_HELD_OUT = 1_000
"""Images of the validation and of the test split where there are no lists, as many as in the
official ones; at most an eighth of all images."""

_LISTS = {"train": "train", "validation": "dev", "dev": "dev", "test": "test"}
_IMAGE_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")
_TEXT_FOLDERS = ("Flickr8k_text", ".")
_HEADER = ["image", "caption"]


def read_split(root: str | Path, split: str, *, missing: Missing = "error") -> CaptionedImages:
    """Reads one of the official splits of 6,000, 1,000 and 1,000 images.

    The lists of the official splits may also lie beside Kaggle's ``captions.txt``. Without any,
    the 1,000 images whose names have the lowest SHA-256 are the test split and the next 1,000 the
    validation split; then scores cannot be compared with published ones.

    Args:
        root: the folder that holds Flicker8k_Dataset and Flickr8k_text, or Images and captions.txt.
        split: "train", "validation" (also called "dev") or "test".
        missing: treatment of images without a file, "error" or "skip".

    Returns:
        The images in the list's order, the captions of each in the order of their numbers; ids are
        the file names in Unicode's composed form (NFC).

    Raises:
        FileNotFoundError: the folder, a list, or image files are missing.
        ValueError: the split is unknown, an image has no caption, a line is malformed, or a file is
            not in UTF-8.
    """
    name = find_split(split, _LISTS)
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: expected the folder of Flickr8k")
    tokens, table = _find_file(root, "Flickr8k.token.txt"), root / "captions.txt"
    if tokens is None and not table.is_file():
        raise FileNotFoundError(
            f"{root}: Flickr8k_text/Flickr8k.token.txt is not there, nor is Kaggle's captions.txt, "
            f"and the split {split!r} needs one of them"
        )
    captions = _read_table(table) if tokens is None else _read_tokens(tokens)
    lists = {part: _find_file(root, f"Flickr_8k.{part}Images.txt") for part in _LISTS.values()}
    listed = lists[name]
    if listed is not None:
        names = _read_names(listed)
        bare = [name for name in names if name not in captions]
        if bare:
            raise ValueError(
                f"{tokens or table}: {len(bare)} images of {listed} have no caption: "
                f"{first_few(bare)}"
            )
    elif tokens is None and not any(lists.values()):
        listed, names = table, _hold_out(table, tuple(captions), name)
    else:
        raise FileNotFoundError(
            f"{root / _TEXT_FOLDERS[0] / f'Flickr_8k.{name}Images.txt'}: not there, and the split "
            f"{split!r} needs it"
        )
    folders = [root / folder for folder in _IMAGE_FOLDERS]
    folder = next((path for path in folders if path.is_dir()), folders[0])
    images = CaptionedImages(
        paths=tuple(str(folder / name) for name in names),
        captions=tuple(captions[name] for name in names),
        image_ids=tuple(names),
    )
    return keep_present(images, listed, missing)


def _find_file(root: Path, name: str) -> Path | None:
    paths = (root / folder / name for folder in _TEXT_FOLDERS)
    return next((path for path in paths if path.is_file()), None)


def _read_names(path: Path) -> list[str]:
    names = [normal_name(line) for _, line in read_lines(path)]
    if not names:
        raise ValueError(f"{path}: expected names of images, received none")
    return names


def _hold_out(table: Path, names: tuple[str, ...], part: str) -> list[str]:
    """Returns the names of a split by their digests, in the table's order."""
    by_digest = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())
    number = min(NUM_HELD_OUT, len(names) // 8)
    parts = {
        "test": set(by_digest[:number]),
        "dev": set(by_digest[number : 2 * number]),
        "train": set(by_digest[2 * number :]),
    }
    if not parts[part]:
        raise ValueError(
            f"{table}: expected 8 images or more to hold some out, received {len(names)}"
        )
    logger.warning(
        "%s: no lists of the official splits (Flickr_8k.trainImages.txt, …) beside it; %d images "
        "each are held out for validation and test, so scores cannot be compared with published "
        "ones",
        table,
        number,
    )
    return [name for name in names if name in parts[part]]


def _read_tokens(path: Path) -> dict[str, tuple[str, ...]]:
    captions: dict[str, dict[int, str]] = {}
    for number, line in read_lines(path):
        head, _, caption = line.partition("\t")
        name, sharp, order = head.strip().rpartition("#")
        # The line of a caption without words has lost its tab with the spaces at its end.
        if not (name and sharp and order.isdecimal() and len(order) < 10):
            raise ValueError(
                f"{path}, line {number}: expected 'NAME.jpg#0<tab>caption', received {line[:60]!r}"
            )
        of_image = captions.setdefault(normal_name(name), {})
        if int(order) in of_image:
            raise ValueError(f"{path}, line {number}: expected each caption once, received {head}")
        of_image[int(order)] = caption.strip()
    return {name: tuple(texts[i] for i in sorted(texts)) for name, texts in captions.items()}


def _read_table(path: Path) -> dict[str, tuple[str, ...]]:
    """Returns the captions of Kaggle's table; an unquoted caption may have commas."""
    numbered = read_lines(path)
    captions: dict[str, list[str]] = {}
    for number, line in numbered:
        try:
            row = next(csv.reader([line]))
        except csv.Error as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if number == numbered[0][0] and [field.strip().lower() for field in row] == _HEADER:
            continue
        name, caption = row[0].strip(), ",".join(row[1:]).strip()
        if len(row) < 2 or not Path(name).suffix:
            raise ValueError(
                f"{path}, line {number}: expected 'NAME.jpg,caption', received {line[:60]!r}"
            )
        captions.setdefault(normal_name(name), []).append(caption)
    if not captions:
        raise ValueError(f"{path}: expected lines 'NAME.jpg,caption', received none")
    return {name: tuple(texts) for name, texts in captions.items()}
