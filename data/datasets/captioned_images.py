"""What every reader of captioned images gives: files, their captions, their names."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Missing = Literal["error", "skip"]
"""What to do with images that a list names and that are not there."""


@dataclass(frozen=True)
class CaptionedImages:
    """One split: image files with all captions of each.

    Attributes:
        paths: the files.
        captions: of each image, at least one, as people wrote them.
        image_ids: what the data set calls each image, each once.
        missing: files that the lists name and that were skipped because they are not there.

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
            raise ValueError(f"captions: {len(bare)} images have none: {some(bare)}")
        if len(set(self.image_ids)) < len(self.image_ids):
            seen: set[int | str] = set()
            repeated = [i for i in self.image_ids if i in seen or seen.add(i)]  # type: ignore[func-returns-value]
            raise ValueError(f"image_ids: expected each once, received again {some(repeated)}")

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, numbers: Sequence[int]) -> "CaptionedImages":
        """The images of these numbers, in this order."""
        return CaptionedImages(
            paths=tuple(self.paths[i] for i in numbers),
            captions=tuple(self.captions[i] for i in numbers),
            image_ids=tuple(self.image_ids[i] for i in numbers),
        )


def find_split(split: str, names: Mapping[str, str]) -> str:
    """Looks a split's name up.

    Args:
        split: what was asked for.
        names: every name that is understood, with what it stands for.

    Raises:
        ValueError: an unknown name; the message has the nearest.
    """
    if split in names:
        return names[split]
    near = difflib.get_close_matches(str(split).lower(), names, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"split: expected one of {', '.join(names)}, received {split!r}{hint}")


def keep_present(
    images: CaptionedImages, listed_in: str | Path, missing: Missing = "error"
) -> CaptionedImages:
    """Checks that the files are there.

    Args:
        images: what the lists name.
        listed_in: the list, for the message.
        missing: "error", or "skip" to leave out images whose file is not there, which
            ``CaptionedImages.missing`` then names.

    Raises:
        FileNotFoundError: files are missing, or, of those to skip, all.
        ValueError: ``missing`` is something else.
    """
    if missing not in ("error", "skip"):
        raise ValueError(f"missing: expected 'error' or 'skip', received {missing!r}")
    present = [number for number, path in enumerate(images.paths) if Path(path).is_file()]
    if len(present) == len(images):
        return images
    there = set(present)
    absent = tuple(path for number, path in enumerate(images.paths) if number not in there)
    if missing == "error" or not present:
        raise FileNotFoundError(
            f"{listed_in}: {len(absent)} of the {len(images)} images it names are not there: "
            f"{some(absent)}"
        )
    kept = images.select(present)
    return CaptionedImages(kept.paths, kept.captions, kept.image_ids, absent)


def some(items: Sequence[object]) -> str:
    """The first three items, for a message."""
    return ", ".join(map(str, items[:3])) + (", ..." if len(items) > 3 else "")
