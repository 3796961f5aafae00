"""COCO's result files of captions: ``[{"image_id": 42, "caption": "a dog runs"}, …]``.

The format of https://cocodataset.org/#format-results, read by COCO's evaluation server and by
pycocotools.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from data.files import write_atomically


def write_results(path: str | Path, captions: Mapping[int, str]) -> None:
    """Writes captions in the mapping's order, replacing an existing file atomically.

    Args:
        path: the JSON file, in an existing folder.
        captions: image id -> caption.

    Raises:
        ValueError: an id is not an integer, or a caption is not a string.
    """
    entries = []
    for image_id, caption in captions.items():
        if isinstance(image_id, bool) or not hasattr(image_id, "__index__"):
            raise ValueError(f"captions: expected an integer as image_id, received {image_id!r}")
        if not isinstance(caption, str):
            raise ValueError(f"captions[{image_id}]: expected a string, received {caption!r}")
        # int() converts NumPy's integers, which json cannot serialise.
        entries.append({"image_id": int(image_id), "caption": caption})
    text = json.dumps(entries)
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
