"""Flickr8k as downloaded: photographs with five captions each.

Hodosh, Young and Hockenmaier, 2013, Journal of Artificial Intelligence Research 47::

    Flicker8k_Dataset/NAME.jpg
    Flickr8k_text/Flickr8k.token.txt           "NAME.jpg#0<tab>A child in a pink dress ..."
    Flickr8k_text/Flickr_8k.trainImages.txt    "NAME.jpg"; also devImages, testImages
"""

from pathlib import Path

from data.datasets.captioned_images import (
    CaptionedImages,
    Missing,
    find_split,
    first_few,
    keep_present,
)

_LISTS = {"train": "train", "validation": "dev", "dev": "dev", "test": "test"}


def read_split(root: str | Path, split: str, *, missing: Missing = "error") -> CaptionedImages:
    """Reads one of the official splits of 6,000, 1,000 and 1,000 images.

    Args:
        root: the folder that holds Flicker8k_Dataset and Flickr8k_text.
        split: "train", "validation" (also called "dev") or "test".
        missing: treatment of images without a file, "error" or "skip".

    Returns:
        The images in the list's order, the captions of each in the order of their numbers; ids are
        the file names.

    Raises:
        FileNotFoundError: the folder, a list, or image files are missing.
        ValueError: the split is unknown, an image has no caption, or a line is malformed.
    """
    name = find_split(split, _LISTS)
    folder, texts = Path(root) / "Flicker8k_Dataset", Path(root) / "Flickr8k_text"
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root}: expected the folder of Flickr8k")
    listed = texts / f"Flickr_8k.{name}Images.txt"
    tokens = texts / "Flickr8k.token.txt"
    for path in (listed, tokens):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not there, and the split {split!r} needs it")
    names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines()]
    names = [name for name in names if name]
    if not names:
        raise ValueError(f"{listed}: expected names of images, received none")
    captions = _read_captions(tokens)
    bare = [name for name in names if name not in captions]
    if bare:
        raise ValueError(
            f"{tokens}: {len(bare)} images of {listed} have no caption: {first_few(bare)}"
        )
    images = CaptionedImages(
        paths=tuple(str(folder / name) for name in names),
        captions=tuple(captions[name] for name in names),
        image_ids=tuple(names),
    )
    return keep_present(images, listed, missing)


def _read_captions(path: Path) -> dict[str, tuple[str, ...]]:
    captions: dict[str, dict[int, str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        head, tab, caption = line.partition("\t")
        name, sharp, order = head.strip().rpartition("#")
        if not (tab and sharp and order.isdigit()):
            raise ValueError(
                f"{path}, line {number}: expected 'NAME.jpg#0<tab>caption', received {line[:60]!r}"
            )
        of_image = captions.setdefault(name, {})
        if int(order) in of_image:
            raise ValueError(f"{path}, line {number}: expected each caption once, received {head}")
        of_image[int(order)] = caption.strip()
    return {name: tuple(texts[i] for i in sorted(texts)) for name, texts in captions.items()}
