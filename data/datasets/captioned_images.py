"""Splits of captioned images, and the checks that their readers share."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.files import find_files

Missing = Literal["error", "skip"]
"""Treatment of listed images whose file does not exist."""


@dataclass(frozen=True)
class CaptionedImages:
    """One split: image files with all captions of each.

    Attributes:
        paths: the files.
        captions: the original captions of each image, at least one.
        image_ids: unique ids of the images in the data set.
        missing: listed files that were skipped because they do not exist.

    Raises:
        ValueError: the lengths differ, an image has no captions, or an id is repeated.
    """

    paths: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    image_ids: tuple[int | str, ...]
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = len(self.paths), len(self.captions), len(self.image_ids)
        if len(set(counts)) > 1:
            raise ValueError(
                f"paths, captions, image_ids: expected one for each image, received {counts}"
            )
        bare = [path for path, texts in zip(self.paths, self.captions, strict=True) if not texts]
        if bare:
            raise ValueError(f"captions: {len(bare)} images have none: {first_few(bare)}")
        if len(set(self.image_ids)) < len(self.image_ids):
            seen: set[int | str] = set()
            repeated = [i for i in self.image_ids if i in seen or seen.add(i)]  # type: ignore[func-returns-value]
            raise ValueError(f"image_ids: expected each once, received again {first_few(repeated)}")

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, numbers: Sequence[int]) -> "CaptionedImages":
        """Returns the images with the given indices, in their order."""
        return CaptionedImages(
            paths=tuple(self.paths[i] for i in numbers),
            captions=tuple(self.captions[i] for i in numbers),
            image_ids=tuple(self.image_ids[i] for i in numbers),
        )


def find_split(split: str, names: Mapping[str, str]) -> str:
    """Returns the data set's own name of a split.

    Args:
        split: the requested split.
        names: accepted name -> the data set's own name.

    Raises:
        ValueError: an unknown name; the message suggests the nearest.
    """
    if split in names:
        return names[split]
    near = difflib.get_close_matches(str(split).lower(), names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"split: expected one of {', '.join(names)}, received {split!r}{hint}")


def keep_present(
    images: CaptionedImages, listed_in: str | Path, missing: Missing = "error"
) -> CaptionedImages:
    """Returns the images whose files exist, under the names that they have on disk.

    A name on disk may be in another Unicode form (NFC or NFD) than in the list.

    Args:
        images: the listed images.
        listed_in: the list, for the message.
        missing: "error", or "skip" to leave out images without a file;
            ``CaptionedImages.missing`` then names these.

    Raises:
        FileNotFoundError: a file is missing and ``missing`` is "error", or all are missing.
        ValueError: an unknown value of ``missing``.
    """
    if missing not in ("error", "skip"):
        raise ValueError(f"missing: expected 'error' or 'skip', received {missing!r}")
    files = find_files(images.paths)
    absent = tuple(path for path, file in zip(images.paths, files, strict=True) if file is None)
    if absent and (missing == "error" or len(absent) == len(images)):
        raise FileNotFoundError(
            f"{listed_in}: {len(absent)} of the {len(images)} images it names are not there: "
            f"{first_few(absent)}"
        )
    present = [number for number, file in enumerate(files) if file is not None]
    kept = images.select(present)
    return CaptionedImages(
        tuple(str(files[number]) for number in present), kept.captions, kept.image_ids, absent
    )


def first_few(items: Sequence[object]) -> str:
    """Returns the first three items as text, for a message."""
    return ", ".join(map(str, items[:3])) + (", ..." if len(items) > 3 else "")
