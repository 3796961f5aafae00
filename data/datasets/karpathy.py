"""Karpathy's JSON of captioned images: Flickr8k, Flickr30k and COCO with the splits of papers.

Karpathy and Li, 2015, arXiv:1412.2306. ``dataset_flickr8k.json``, ``dataset_flickr30k.json`` and
``dataset_coco.json`` hold::

    {"images": [{"split": "train", "filename": "NAME.jpg", "filepath": "train2014",
                 "imgid": 0, "cocoid": 57870, "sentences": [{"raw": "A restaurant has ..."}]}]}

Only COCO has ``filepath`` and ``cocoid``. Its ``restval`` holds the validation images that are in
neither "val" nor "test"; papers train on it as well.
"""

from collections.abc import Collection, Sequence
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

SPLITS = {
    "train": "train",
    "restval": "restval",
    "validation": "val",
    "val": "val",
    "dev": "val",
    "test": "test",
}
"""Accepted name -> Karpathy's name."""
FORM = "Karpathy's JSON of captioned images"
"""Description of the format, for errors."""


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
        The images in the file's order; ids are COCO's if all images have one, otherwise ``imgid``,
        otherwise the images' numbers in the file.

    Raises:
        FileNotFoundError: the JSON file, or images that it lists, are missing.
        ValueError: the split is unknown or empty, or the file has another format.
    """
    name = find_split(split, SPLITS)
    chosen = {"train", "restval"} if name == "train" and restval else {name}
    every = parse_images(read_json(path, FORM), path, chosen)
    ids = image_ids(every)
    entries = [(i, entry) for i, entry in zip(ids, every, strict=True) if entry["split"] in chosen]
    if not entries:
        there = first_few(sorted({entry["split"] for entry in every}))
        raise ValueError(f"split: no image of {path} is in {split!r}, there are: {there}")
    folder = Path(images_root)
    images = CaptionedImages(
        paths=tuple(str(folder / e.get("filepath", "") / e["filename"]) for _, e in entries),
        captions=tuple(tuple(s["raw"].strip() for s in e["sentences"]) for _, e in entries),
        image_ids=tuple(i for i, _ in entries),
    )
    return keep_present(images, path, missing)


def parse_images(
    content: Any, path: str | Path, chosen: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Returns the entries of all images of a JSON file.

    Args:
        content: the JSON.
        path: of its file, for errors.
        chosen: Karpathy's names of the splits whose entries are checked; None: all.

    Raises:
        ValueError: the file has another format.
    """
    expected = f"{path}: expected {FORM}"
    every = content.get("images") if isinstance(content, dict) else None
    if not isinstance(every, list):
        raise ValueError(f"{expected}, received no list 'images'")
    for number, entry in enumerate(every):
        where = f"{expected}, images[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("split"), str):
            raise ValueError(f"{where} with a text 'split', received {entry!r:.60}")
        if chosen is None or entry["split"] in chosen:
            _check_entry(where, entry)
    return every


def image_ids(entries: Sequence[dict[str, Any]]) -> list[int | str]:
    """Returns COCO's ids if all images have one, else ``imgid``, else the images' numbers."""
    for key in ("cocoid", "imgid"):
        if all(key in entry for entry in entries):
            return [entry[key] for entry in entries]
    return list(range(len(entries)))


def _check_entry(where: str, entry: dict[str, Any]) -> None:
    """Checks the entry of an image; ``where`` begins the error."""
    for key in ("filename", "filepath"):
        value = entry.get(key, "" if key == "filepath" else None)
        if not isinstance(value, str):
            raise ValueError(f"{where} with a text {key!r}, received {value!r:.60}")
    for key in ("cocoid", "imgid"):
        if not isinstance(entry.get(key, 0), int | str):
            raise ValueError(f"{where} with a number or text {key!r}, received {entry[key]!r:.60}")
    sentences = entry.get("sentences")
    if not isinstance(sentences, list) or not all(
        isinstance(sentence, dict) and isinstance(sentence.get("raw"), str)
        for sentence in sentences
    ):
        raise ValueError(
            f"{where} with sentences that have a text 'raw', received {sentences!r:.60}"
        )
