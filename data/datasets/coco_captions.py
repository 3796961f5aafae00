"""COCO's own format of captions: images and annotations in two lists.

Chen et al., 2015, arXiv:1504.00325. ``captions_train2017.json`` and its siblings hold::

    {"images": [{"id": 391895, "file_name": "000000391895.jpg"}],
     "annotations": [{"id": 770337, "image_id": 391895, "caption": "A man with a red ..."}]}

COCO's folder holds ``annotations/captions_{train,val}YEAR.json`` and the images in ``trainYEAR/``
and ``valYEAR/``. The captions of its test images are not public. Papers use Karpathy's splits of
the images of 2014 (``data.datasets.karpathy``).
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from data.datasets.captioned_images import (
    CaptionedImages,
    Missing,
    find_split,
    first_few,
    keep_present,
)

YEARS = (2017, 2014)
"""Releases, the preferred one first; both contain the same images."""
NUM_VALIDATION = 5_000
"""Training images held out for validation, as many as Karpathy's; at most a tenth of all."""

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
        The images in the file's order, the captions of each by ascending id; ids are COCO's.

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
    expected = f"{path}: expected COCO's JSON of captions"
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        numbered: dict[int, list[tuple[int, str]]] = {number: [] for number in names}
        stray = []
        for note in content["annotations"]:
            if note["image_id"] in numbered:
                numbered[note["image_id"]].append((note["id"], note["caption"].strip()))
            else:
                stray.append(note["image_id"])
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{expected} ({error})") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{expected}; {type(error).__name__}: {error}") from None
    if not names:
        raise ValueError(f"{expected}, received no images")
    if stray:
        raise ValueError(
            f"{expected}; {len(stray)} captions of images not listed: {first_few(stray)}"
        )
    return CaptionedImages(
        paths=tuple(str(Path(images_root) / name) for name in names.values()),
        captions=tuple(tuple(text for _, text in sorted(numbered[i])) for i in names),
        image_ids=tuple(names),
    )
