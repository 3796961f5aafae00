"""COCO's JSON of captions: images and annotations in two lists.

Chen et al., 2015, arXiv:1504.00325. ``captions_train2017.json`` and its like hold::

    {"images": [{"id": 391895, "file_name": "000000391895.jpg"}],
     "annotations": [{"id": 770337, "image_id": 391895, "caption": "A man with a red ..."}]}

A file is a split. Papers use Karpathy's splits of the images of 2014 (``data.datasets.karpathy``).
"""

import json
from pathlib import Path
from typing import Any

from data.datasets.captioned_images import CaptionedImages, Missing, keep_present, some


def read_annotations(
    path: str | Path, images_root: str | Path, *, missing: Missing = "error"
) -> CaptionedImages:
    """Reads the images of a file with their captions.

    Args:
        path: the JSON file.
        images_root: the folder of the images.
        missing: whether files that are not there are an "error" or to "skip".

    Returns:
        The images in the file's order, the captions of each by rising id; ids are COCO's.

    Raises:
        FileNotFoundError: the JSON file, or images it names, are missing.
        ValueError: the file is something else, has an image without captions, or captions of
            images that it does not list.
    """
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
        raise ValueError(f"{expected}; {len(stray)} captions of images not listed: {some(stray)}")
    images = CaptionedImages(
        paths=tuple(str(Path(images_root) / name) for name in names.values()),
        captions=tuple(tuple(text for _, text in sorted(numbered[i])) for i in names),
        image_ids=tuple(names),
    )
    return keep_present(images, path, missing)
