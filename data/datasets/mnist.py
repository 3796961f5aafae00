"""MNIST's digits as sequences of 784 pixels, in their order or permuted.

Reads the published files (``train-images-idx3-ubyte``, also with ``.gz``), or ``train.npz`` and
``test.npz`` with ``images`` (N,28,28) uint8 and ``labels`` (N,). As in the study of Bai et al.
(1803.01271): one pixel a step, (x/255 − 0.1307) / 0.3081, and one permutation for all digits.
"""

import gzip
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.batches import SequenceExample
from data.datasets.number_tables import load_npz
from data.files import require_file
from data.series.sequences import check_index, digest

SPLITS = ("train", "validation", "test")
VALIDATION = 5_000
"""Default number of digits of train's end that validate."""
MEAN, DEVIATION = 0.1307, 0.3081
"""Mean and standard deviation of train's pixels in [0,1]."""

_FILES = {"train": ("train.npz", "train"), "test": ("test.npz", "t10k")}
_FORMS = ("{0}-{1}-idx{2}-ubyte", "{0}-{1}.idx{2}-ubyte")


@dataclass(frozen=True, eq=False)
class Digits:
    """Images of digits with labels.

    Attributes:
        images: (N,28,28) uint8.
        labels: (N,) int32 in 0..9.
    """

    images: np.ndarray
    labels: np.ndarray


def read_mnist(root: str | os.PathLike[str], split: str, *, validation: int = VALIDATION) -> Digits:
    """Reads one split.

    Args:
        root: folder of the files.
        split: "train", "validation" or "test". Validation is the last digits of the published
            training split, which are left out of "train".
        validation: their number, 0 to the training split's less one; with 0 all digits train.

    Raises:
        FileNotFoundError: the files of the split are not there.
        ValueError: an unknown split, a number out of range, or damaged files.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, received {split!r}")
    images, labels = _read(Path(root), "test" if split == "test" else "train")
    if split == "test":
        return Digits(images, labels)
    if not (split == "train") <= validation + 1 <= len(images) or (
        split == "validation" and validation < 1
    ):
        raise ValueError(
            f"validation: expected 0 (1 for the validation split) to {len(images) - 1} of the "
            f"{len(images)} training digits, received {validation}"
        )
    cut = len(images) - validation
    rows = slice(cut) if split == "train" else slice(cut, None)
    return Digits(images[rows], labels[rows])


def make_permutation(seed: int = 0, size: int = 28 * 28) -> np.ndarray:
    """Returns the permutation of permuted MNIST, (size,) int64: step t shows pixel p[t].

    It depends on the seed alone; all splits of one study share it.
    """
    return np.random.default_rng(seed).permutation(size)


class PixelSequences:
    """Digits pixel by pixel, a source of ``SequenceExample``; picklable.

    ``inputs`` (784,1) float32, ``label`` in 0..9.

    Args:
        digits: one split.
        permutation: (784,) of the pixels, as of ``make_permutation``; None: row by row.

    Raises:
        ValueError: no digits, or no permutation of their pixels.
    """

    class_names = tuple("0123456789")

    def __init__(self, digits: Digits, permutation: np.ndarray | None = None):
        if not len(digits.images):
            raise ValueError("digits: expected at least one, received none")
        pixels = digits.images[0].size
        if permutation is not None and not np.array_equal(np.sort(permutation), np.arange(pixels)):
            raise ValueError(
                f"permutation: expected the numbers 0 to {pixels - 1}, each once, received others"
            )
        self.digits = digits
        self.permutation = permutation
        self._content = digest([digits.images, digits.labels])

    def __len__(self) -> int:
        return len(self.digits.images)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"PixelSequences({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON; a ``Loader``'s ``identity``."""
        order = None if self.permutation is None else digest([self.permutation.astype(np.int64)])
        return {"content": self._content, "permutation": order}

    def __getitem__(self, index: int, /) -> SequenceExample:
        """Returns digit ``index``.

        Raises:
            IndexError: the index is out of range.
        """
        number = check_index(index, len(self))
        pixels = self.digits.images[number].reshape(-1)
        if self.permutation is not None:
            pixels = pixels[self.permutation]
        values = (pixels.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
        return SequenceExample(
            inputs=values[:, None],
            lengths=np.asarray(len(values), np.int32),
            label=np.asarray(self.digits.labels[number], np.int32),
            mask=np.asarray(True),
            index=np.asarray(number, np.int32),
        )


def _read(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of the published part."""
    npz, begin = _FILES[part]
    if (root / npz).is_file():
        arrays = load_npz(root / npz)
        if not {"images", "labels"} <= arrays.keys():
            raise ValueError(
                f"{root / npz}: expected the arrays images and labels, received "
                f"{', '.join(arrays) or 'none'}"
            )
        images, labels = arrays["images"], arrays["labels"]
    else:
        images = _read_idx(_find(root, begin, "images", 3), 3)
        labels = _read_idx(_find(root, begin, "labels", 1), 1)
    if images.ndim != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{root}: expected images (N,28,28) uint8 and labels (N,), received {images.shape} "
            f"{images.dtype} and {labels.shape}"
        )
    if len(labels) and int(labels.max()) > 9:
        raise ValueError(f"{root}: expected labels 0 to 9, received {labels.max()}")
    return images, labels.astype(np.int32)


def _find(root: Path, begin: str, what: str, axes: int) -> Path:
    names = [form.format(begin, what, axes) for form in _FORMS]
    for name in names:
        for path in (root / name, root / f"{name}.gz"):
            if path.is_file():
                return path
    npz = next(npz for npz, other in _FILES.values() if other == begin)
    raise FileNotFoundError(
        f"{root}: expected {names[0]}, the same with .gz, or {npz}, received none of them"
    )


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """Returns the array of an IDX file: two zeros, 8 for uint8, the number of axes, sizes, data."""
    require_file(path, "an IDX file")
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged ({error}); copy it again") from None
    begin = 4 + 4 * axes
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) < begin:
        raise ValueError(
            f"{path}: expected an IDX file of uint8 with {axes} axes, received one that begins "
            f"with {content[:4].hex(' ')}"
        )
    sizes = struct.unpack(f">{axes}I", content[4:begin])
    count = int(np.prod(sizes, dtype=np.int64))
    if len(content) - begin != count:
        raise ValueError(
            f"{path}: expected {count} bytes of data for {sizes}, received "
            f"{len(content) - begin}; copy it again"
        )
    return np.frombuffer(content, np.uint8, offset=begin).reshape(sizes)
