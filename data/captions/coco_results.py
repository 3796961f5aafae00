"""COCO's result files of captions: ``[{"image_id": 42, "caption": "a dog runs"}, …]``.

The format of https://cocodataset.org/#format-results, which COCO's evaluation server and
pycocotools read.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path

from data.files import write_atomically


def write_results(path: str | Path, captions: Mapping[int, str]) -> None:
    """Writes captions, in the mapping's order; a file of that name stays whole until replaced.

    Args:
        path: the JSON file; its folder is there.
        captions: one caption for each image id.

    Raises:
        ValueError: an id is not an integer, or a caption not a string.
    """
    entries = []
    for image_id, caption in captions.items():
        _check_id("captions", image_id)
        if not isinstance(caption, str):
            raise ValueError(f"captions[{image_id}]: expected a string, received {caption!r}")
        # int() takes NumPy's integers to those that JSON knows.
        entries.append({"image_id": int(image_id), "caption": caption})
    text = json.dumps(entries)
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))


def read_results(path: str | Path, *, image_ids: Collection[int] | None = None) -> dict[int, str]:
    """Reads the captions of a result file.

    Args:
        path: the JSON file.
        image_ids: the ids that may occur; None takes any.

    Returns:
        The caption of each image id, in the file's order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no list of entries with ``image_id`` and ``caption``, an image
            occurs twice, or it is none of ``image_ids``.
    """
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, received {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of results, received {_kind(entries)}")
    captions: dict[int, str] = {}
    twice = []
    for number, entry in enumerate(entries):
        where = f"{path}: entry {number}"
        if not isinstance(entry, dict):
            raise ValueError(f"{where}: expected an object, received {entry!r}")
        if missing := [key for key in ("image_id", "caption") if key not in entry]:
            raise ValueError(f"{where}: expected image_id and caption, {missing[0]} is missing")
        image_id, caption = entry["image_id"], entry["caption"]
        _check_id(where, image_id)
        if not isinstance(caption, str):
            raise ValueError(f"{where}: expected a string as caption, received {caption!r}")
        if image_id in captions:
            twice.append(image_id)
        captions[image_id] = caption
    if twice:
        raise ValueError(f"{path}: expected each image once, received twice: {_some(twice)}")
    if image_ids is not None:
        known = set(image_ids)
        if unknown := [image_id for image_id in captions if image_id not in known]:
            raise ValueError(f"{path}: {len(unknown)} unknown image ids: {_some(unknown)}")
    return captions


def _check_id(where: str, image_id: object) -> None:
    if isinstance(image_id, bool) or not hasattr(image_id, "__index__"):
        raise ValueError(f"{where}: expected an integer as image_id, received {image_id!r}")


def _kind(value: object) -> str:
    return "an object" if isinstance(value, dict) else repr(value)


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (", …" if len(ids) > 5 else "")
