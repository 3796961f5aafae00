"""COCO's own format of captions: images and annotations in two lists.

Chen et al., 2015, arXiv:1504.00325. ``captions_train2017.json`` and its siblings hold::

    {"images": [{"id": 391895, "file_name": "000000391895.jpg"}],
     "annotations": [{"id": 770337, "image_id": 391895, "caption": "A man with a red ..."}]}

COCO's folder holds ``annotations/captions_{train,val}YEAR.json`` and the images in ``trainYEAR/``
and ``valYEAR/``. The captions of its test images are not public. Papers use Karpathy's splits of
the images of 2014 (``data.datasets.karpathy``).
"""

import hashlib
from pathlib import Path
from typing import Any

from data.datasets.captioned_images import (
    CaptionedImages,
    Missing,
    find_split,
    first_few,
    keep_present,
)
from data.files import read_json

YEARS = (2017, 2014)
"""Releases, the preferred one first; both contain the same images."""
NUM_VALIDATION = 5_000
"""Training images held out for validation, as many as Karpathy's; at most a tenth of all."""

FORM = "COCO's JSON of captions"
"""Description of the format, for errors."""

_SPLITS = {"train": "train", "validation": "val", "val": "val", "dev": "val", "test": "test"}


def read_split(
    root: str | Path, split: str, *, year: int | None = None, missing: Missing = "error"
) -> CaptionedImages:
    """Reads one split of COCO's own folder.

    COCO's validation images are the split "test". The split "validation" is held out of the
    training images: those whose ids have the lowest SHA-256.

    Args:
        root: COCO's folder.
        split: "train", "validation" (also called "val", "dev") or "test".
        year: 2017 or 2014; None takes the latest that exists.
        missing: treatment of images without a file, "error" or "skip".

    Returns:
        The images in the file's order, the captions of each by ascending id, or in the file's order
        unless the ids of all captions are numbers; ids are COCO's.

    Raises:
        FileNotFoundError: annotations, or images that they list, are missing.
        ValueError: an unknown split, a file of another format, an image without captions, or
            captions of images that are not listed.
    """
    name = find_split(split, _SPLITS)
    part = "val" if name == "test" else "train"
    notes = Path(root) / "annotations"
    years = YEARS if year is None else (year,)
    files = {some_year: notes / f"captions_{part}{some_year}.json" for some_year in years}
    found = next((some_year for some_year, path in files.items() if path.is_file()), None)
    if found is None:
        wanted = " or ".join(path.name for path in files.values())
        raise FileNotFoundError(f"{notes}: {wanted} is not there, and the split {split!r} needs it")
    images = _parse(files[found], Path(root) / f"{part}{found}")
    if name != "test":
        by_digest = sorted(range(len(images)), key=lambda i: _digest(images.image_ids[i]))
        held_out = set(by_digest[: min(NUM_VALIDATION, len(images) // 10)])
        chosen = [i for i in range(len(images)) if (i in held_out) == (name == "val")]
        images = images.select(chosen)
    return keep_present(images, files[found], missing)


def _digest(image_id: int | str) -> bytes:
    return hashlib.sha256(str(image_id).encode()).digest()


def _parse(path: str | Path, images_root: str | Path) -> CaptionedImages:
    """Returns all images of a file, without checking that they exist."""
    names, captions = parse_annotations(read_json(path, FORM), path)
    return CaptionedImages(
        paths=tuple(str(Path(images_root) / name) for name in names.values()),
        captions=tuple(captions[image_id] for image_id in names),
        image_ids=tuple(names),
    )


def parse_annotations(
    content: Any, path: str | Path
) -> tuple[dict[int | str, str], dict[int | str, tuple[str, ...]]]:
    """Returns the file names and the captions of the images of a JSON file, both by image id.

    Args:
        content: the JSON.
        path: of its file, for errors.

    Raises:
        ValueError: another format, no images, or captions of images that are not listed.
    """
    expected = f"{path}: expected {FORM}"
    listed, notes = (_entries(content, key, expected) for key in ("images", "annotations"))
    if not listed:
        raise ValueError(f"{expected}, received no images")
    names: dict[int | str, str] = {}
    for number, image in enumerate(listed):
        where = f"{expected}, images[{number}]"
        image_id, name = _id(image, "id", where), _text(image, "file_name", where)
        if names.setdefault(image_id, name) != name:
            raise ValueError(f"{where} with an id of its own, received {image_id!r} again")
    # Some files have numbers in one list and their digits as text, padded, as "7.0" or not, in the
    # other.
    by_digits = {_digits(image_id): image_id for image_id in names}
    captions: dict[int | str, list[tuple[Any, str]]] = {image_id: [] for image_id in names}
    stray = []
    for number, note in enumerate(notes):
        where = f"{expected}, annotations[{number}]"
        image_id = _id(note, "image_id", where)
        image_id = image_id if image_id in captions else by_digits.get(_digits(image_id), image_id)
        if image_id in captions:
            caption = _text(note, "caption", where).strip()
            captions[image_id].append((note.get("id"), caption))
        else:
            stray.append(image_id)
    if stray:
        raise ValueError(
            f"{expected}; {len(stray)} captions of images not listed: {first_few(stray)}"
        )
    if all(isinstance(number, int) for texts in captions.values() for number, _ in texts):
        captions = {image_id: sorted(texts) for image_id, texts in captions.items()}
    return names, {i: tuple(text for _, text in texts) for i, texts in captions.items()}


def _entries(content: Any, key: str, expected: str) -> list[dict[str, Any]]:
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{expected}, received no list {key!r}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise ValueError(f"{expected}, {key}[{number}] a record, received {entry!r:.60}")
    return entries


def _id(entry: dict[str, Any], key: str, where: str) -> int | str:
    value = entry.get(key)
    if isinstance(value, float) and value.is_integer():  # As tables with gaps write integers.
        return int(value)
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise ValueError(f"{where} with a number or text {key!r}, received {value!r:.60}")
    return value


def _digits(image_id: int | str) -> str:
    text = str(image_id).strip().removesuffix(".0")
    return text.lstrip("0") or text[-1:]


def _text(entry: dict[str, Any], key: str, where: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise ValueError(f"{where} with a text {key!r}, received {value!r:.60}")
    return value
