"""Files that are the same or look alike: equal contents, and nearly equal small pictures.

The signature of a file is a small grey picture of an image, or 8 of a video spread over its length.
Two files are alike if their signatures correlate, whatever their size, codec, brightness and
contrast. Videos of a camera that does not move all show the same background, so theirs must also
correlate after their average over time is subtracted.

Measured: of all 24 million pairs of Flickr8k's 7,000 photographs one reaches ``IMAGE_THRESHOLD``,
and shows the same picture; the next has 0.963. The greatest correlation of two of COCO's 80 is
0.77; of two of UT-Interaction's 60 clips 0.80, and 0.59 in motion. Copies of images that were
compressed to JPEG quality 20, halved, or changed in contrast have at least 0.996; brightened by
30 %, 99 % of them 0.966; cropped by 3 % on each side, 0.77, so that most of those are not found.
Copies of clips that were encoded again, halved, brightened, cropped by 3 %, cut by 5 frames at both
ends, or changed in rate have at least 0.905, and 0.872 in motion; cropped by 5 %, 0.76 and 0.67.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image

from data.files import find_stored, open_file, stored_digest

SIDE = 16
"""Height and width of the pictures of a signature."""
NUM_PICTURES = 8
"""Pictures of a video's signature."""
IMAGE_THRESHOLD = 0.97
"""Least correlation of images that are alike."""
VIDEO_THRESHOLD, MOTION_THRESHOLD = 0.9, 0.8
"""Least correlations of videos that are alike, as they are and without their average over time."""
MAX_PRODUCTS = 2e12
"""Most multiplications with which files are compared, a minute or two on two cores."""

_STILL = 1.5  # Grey levels, root mean square, up to which motion may be noise.
_BLOCK = 1024  # Signatures that are compared at once, 4 MB of results.


@dataclass(frozen=True)
class Pair:
    """Two files that are alike.

    Attributes:
        first: index of a file.
        second: index of another, greater than ``first``.
        correlation: of their signatures, at most 1.
    """

    first: int
    second: int
    correlation: float


def make_signature(pictures: np.ndarray) -> np.ndarray:
    """Returns the signature of pictures (T,H,W,3) uint8: (T,16,16) uint8."""
    small = [
        Image.fromarray(picture).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
        for picture in pictures
    ]
    return np.stack([np.asarray(image) for image in small])


def find_identical(
    paths: Sequence[str], sizes: Sequence[int], executor: Executor
) -> list[list[int]]:
    """Returns the indices of files of equal content, a list for each content of several files.

    Args:
        paths: the files.
        sizes: of each, bytes; -1: it is not read. Only files of equal size are.
        executor: of threads, which read.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, size in enumerate(sizes):
        if size >= 0:
            by_size[size].append(index)
    candidates = [index for same in by_size.values() if len(same) > 1 for index in same]
    by_content: dict[str, list[int]] = defaultdict(list)
    digests = executor.map(_digest, [paths[index] for index in candidates])
    for index, digest in zip(candidates, digests, strict=True):
        if digest:
            by_content[digest].append(index)
    return [same for same in by_content.values() if len(same) > 1]


def find_alike(signatures: Sequence[np.ndarray], sides: Sequence[str]) -> list[Pair] | None:
    """Returns pairs of files that look alike, the likest first.

    Args:
        signatures: of each file, (T,16,16) uint8; T is 1 for images and the same for all.
        sides: split of each file; only files of different splits are compared, but all files where
            there is a single split.

    Returns:
        The pairs; None if there are too many files to compare (``MAX_PRODUCTS``).
    """
    count = len(signatures)
    if count < 2:
        return []
    stacked = np.stack(signatures)
    names, numbers = np.unique(np.asarray(sides), return_inverse=True)
    if len(names) == 1:
        everything = np.arange(count)
        compared = [(everything, everything)]
    else:
        members = [np.flatnonzero(numbers == number) for number in range(len(names))]
        compared = [(a, b) for i, a in enumerate(members) for b in members[i + 1 :]]
    if sum(len(a) * len(b) for a, b in compared) * stacked[0].size > MAX_PRODUCTS:
        return None
    pairs = [pair for a, b in compared for pair in _compare(stacked, a, b)]
    return sorted(pairs, key=lambda pair: -pair.correlation)


def _compare(signatures: np.ndarray, left: np.ndarray, right: np.ndarray) -> Iterator[Pair]:
    """Yields the pairs of two groups of files; of one group with itself each pair once."""
    is_video = signatures.shape[1] > 1
    threshold = VIDEO_THRESHOLD if is_video else IMAGE_THRESHOLD
    for first in range(0, len(left), _BLOCK):
        rows = left[first : first + _BLOCK]
        unit = _unit(signatures[rows])
        for second in range(0, len(right), _BLOCK):
            columns = right[second : second + _BLOCK]
            correlations = unit @ _unit(signatures[columns]).T
            for row, column in np.argwhere(correlations >= threshold):
                a, b = int(rows[row]), int(columns[column])
                if left is right and a >= b:
                    continue
                correlation = float(correlations[row, column])
                if not is_video or _move_alike(signatures[a], signatures[b], correlation):
                    yield Pair(min(a, b), max(a, b), min(correlation, 1.0))


def _move_alike(first: np.ndarray, second: np.ndarray, correlation: float) -> bool:
    """Returns True if two videos correlate without their average over time."""
    motions = [x.astype(np.float32) - x.mean(0, dtype=np.float32) for x in (first, second)]
    if max(float(np.sqrt((motion**2).mean())) for motion in motions) < _STILL:
        return correlation >= IMAGE_THRESHOLD
    a, b = (motion.reshape(-1) for motion in motions)
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return scale > 0 and float(a @ b) / scale >= MOTION_THRESHOLD


def _unit(signatures: np.ndarray) -> np.ndarray:
    """Returns signatures as rows of mean 0 and norm 1; those of one colour as zeros."""
    rows = signatures.reshape(len(signatures), -1).astype(np.float32)
    rows -= rows.mean(1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    # Of a picture that is black but for noise, only the noise would be compared.
    return np.where(norms > np.sqrt(rows.shape[1]), rows / np.maximum(norms, 1e-6), 0)


def _digest(path: str) -> str:
    """Returns the SHA-256 of a file; "" if it cannot be read."""
    try:
        if find_stored(path) is not None:
            return stored_digest(path)
        with open_file(path) as file:
            return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    except OSError:
        return ""
