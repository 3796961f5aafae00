"""Splits of captioned images into train, validation and test, by the images' content."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from data.datasets.captioned_images import first_few
from data.datasets.image_captions import ImageCaptions
from data.datasets.splits import find_copies

LEAST_IMAGES = 6
"""Different images from which a split can be made: two for each side."""


def make_split(
    listed: ImageCaptions, *, validation_share: float, test_share: float, least: int, seed: int
) -> ImageCaptions:
    """Completes the splits of images; those of the data are kept.

    Images without splits get all three, those with training images alone a validation split out of
    these. Images of the same content are never in two splits: made splits keep them together, and
    of given ones the copy in train, or else in validation, is left out.

    Args:
        listed: the images.
        validation_share: share of the images for validation, in [0,1).
        test_share: share of the images for the test, in [0,1).
        least: least images of either, if that is at most a fifth of all.
        seed: of the draw, >= 0.

    Returns:
        The images, with notes on what was done.

    Raises:
        ValueError: shares out of range, fewer than 6 different images, or no training images.
    """
    if not (0 <= validation_share < 1 and 0 <= test_share < 1 - validation_share):
        raise ValueError(
            "validation_share, test_share: expected shares whose sum is below 1, received "
            f"{validation_share} and {test_share}"
        )
    copies = find_copies(listed.images.paths)
    if listed.has_splits:
        listed = _without_leaks(listed, copies)
        if "train" not in listed.splits:
            raise ValueError(
                f"{listed.source}: expected training images, received those of "
                f"{' and '.join(sorted(set(listed.splits)))} alone"
            )
        if "validation" in listed.splits:
            return listed
        copies = find_copies(listed.images.paths)
    # Ordered by a hash of the first name, so that a few further images change few places.
    members: dict[int, list[int]] = {}
    for number, copy in enumerate(copies):
        if listed.splits[number] in ("", "train"):
            members.setdefault(copy, []).append(number)
    groups = sorted(members.values(), key=lambda g: _digest(seed, min(listed.names[i] for i in g)))
    if len(groups) < LEAST_IMAGES:
        raise ValueError(
            f"{listed.source}: expected at least {LEAST_IMAGES} different images to hold some out, "
            f"received {len(groups)}; give more images, or a list with a column of splits"
        )
    num_images = sum(map(len, groups))
    shares = {"validation": validation_share}
    if not listed.has_splits:
        shares["test"] = test_share
    splits = list(listed.splits)
    for split, share in shares.items():
        wanted = max(round(share * num_images), min(least, num_images // 5), 2)
        while wanted > 0 and len(groups) > 1:
            for number in (group := groups.pop()):
                splits[number] = split
            wanted -= len(group)
    splits = [
        split if split in shares or listed.splits[number] not in ("", "train") else "train"
        for number, split in enumerate(splits)
    ]
    cut = f"{' and '.join(shares)} drawn from the images by seed {seed}"
    made = listed.take(range(len(splits)), splits)
    return replace(made, notes=(*made.notes, cut))


def _without_leaks(listed: ImageCaptions, copies: Sequence[int]) -> ImageCaptions:
    """Leaves out copies of images that a later split holds, too, and notes it."""
    order = ("train", "validation", "test")
    last: dict[int, int] = {}
    for copy, split in zip(copies, listed.splits, strict=True):
        last[copy] = max(last.get(copy, 0), order.index(split))
    kept = [i for i, copy in enumerate(copies) if order.index(listed.splits[i]) == last[copy]]
    if len(kept) == len(copies):
        return listed
    left_out = [listed.names[i] for i in sorted(set(range(len(copies))) - set(kept))]
    note = (
        f"{len(left_out)} images are copies of images in a later split and were left out: "
        f"{first_few(left_out)}"
    )
    return replace(listed.take(kept, listed.splits), notes=(*listed.notes, note))


def _digest(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()
