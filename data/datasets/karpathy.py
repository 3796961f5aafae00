"""Karpathy's JSON of captioned images: Flickr8k, Flickr30k and COCO with the splits of papers.

Karpathy and Li, 2015, arXiv:1412.2306. ``dataset_flickr8k.json``, ``dataset_flickr30k.json`` and
``dataset_coco.json`` hold::

    {"images": [{"split": "train", "filename": "NAME.jpg", "filepath": "train2014",
                 "imgid": 0, "cocoid": 57870, "sentences": [{"raw": "A restaurant has ..."}]}]}

Only COCO has ``filepath`` and ``cocoid``. Its ``restval`` holds the validation images that are in
neither "val" nor "test"; papers train on it as well.
"""

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

SPLITS = {
    "train": "train",
    "restval": "restval",
    "validation": "val",
    "val": "val",
    "dev": "val",
    "test": "test",
}
"""Accepted name -> Karpathy's name."""


def read_split(
    path: str | Path,
    images_root: str | Path,
    split: str,
    *,
    restval: bool = True,
    missing: Missing = "error",
) -> CaptionedImages:
    """Reads one split.

    Args:
        path: the JSON file.
        images_root: the folder of the images, or of COCO's folders of images.
        split: "train", "validation" (also called "val", "dev"), "test", or "restval" alone.
        restval: add ``restval`` to "train" if there is one.
        missing: treatment of images without a file, "error" or "skip".

    Returns:
        The images in the file's order; ids are COCO's if present, otherwise ``imgid``.

    Raises:
        FileNotFoundError: the JSON file, or images that it lists, are missing.
        ValueError: the split is unknown or empty, or the file has another format.
    """
    name = find_split(split, SPLITS)
    chosen = {"train", "restval"} if name == "train" and restval else {name}
    expected = f"{path}: expected Karpathy's JSON of captioned images"
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        entries = [entry for entry in content["images"] if entry["split"] in chosen]
        if not entries:
            there = first_few(sorted({entry["split"] for entry in content["images"]}))
            raise ValueError(f"split: no image of {path} is in {split!r}, there are: {there}")
        folder = Path(images_root)
        images = CaptionedImages(
            paths=tuple(str(folder / e.get("filepath", "") / e["filename"]) for e in entries),
            captions=tuple(tuple(s["raw"].strip() for s in e["sentences"]) for e in entries),
            image_ids=tuple(e["cocoid"] if "cocoid" in e else e["imgid"] for e in entries),
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{expected} ({error})") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{expected}; {type(error).__name__}: {error}") from None
    return keep_present(images, path, missing)
