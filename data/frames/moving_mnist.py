"""Moving MNIST: sequences of moving digits, generated or of the published test file.

Generated as Srivastava, Mansimov and Salakhutdinov do (Unsupervised Learning of Video
Representations using LSTMs, 1502.04681, section 3.2, and their code): digits of 28×28 pixels start
uniformly at random in a frame of 64×64, each with a direction that is uniform on the circle and a
speed of a tenth of the free range (3.6 pixels a frame). A digit that reaches a border is put onto
it and its speed across that border changes sign; positions are cut to whole pixels; where digits
overlap the brighter pixel is shown. OpenSTL generates its training sequences by the same rules.
Shi et al. (1506.04214, section 4.1) draw the speed of each digit from 3 to 5 pixels a frame:
``speeds=(3.0, 5.0)``.

Deviation: the published training sets are drawn from all 60,000 training digits. Here the last
10,000 of them are held back, so that validation never shows a digit of the training set, nor the
test where the published test digits are missing.
"""

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np

from data.batches import FrameExample
from data.datasets.mnist import read_mnist
from data.files import require_file
from data.frames.sequences import SPLITS, GeneratedSequences, frame_example
from data.series.sequences import check_index, digest

NUM_SEQUENCES: dict[str, int] = {"train": 10_000, "validation": 1_000, "test": 10_000}
"""Split -> usual number of sequences; of train, those of an epoch."""
HELD_BACK = 10_000
"""Number of the last training digits that do not train."""
SPEED = 3.6
"""Pixels a frame: 0.1 of the 36 pixels that a digit of 28 may move in a frame of 64."""

_FILE_FRAMES = 20


class MovingMNIST(GeneratedSequences):
    """One split of moving digits, a source of ``FrameExample``; picklable.

    ``frames`` (T,S,S,1) uint8 in [0,255], S = ``size``.

    Args:
        digits: (K,h,w) uint8, images of the split's digits, as of ``read_digits``.
        split: "train", "validation" or "test".
        num_sequences: number of examples; None takes that of ``NUM_SEQUENCES``.
        num_frames: T, at least 1.
        num_digits: digits in a sequence, drawn with replacement, at least 1.
        size: S, side of the frames, pixels, at least that of the digits.
        speeds: least and greatest speed of a digit, pixels a frame, drawn uniformly; equal ones
            give every digit the same.
        seed: of the split's sequences.

    Raises:
        ValueError: no digits, or numbers out of range.
    """

    def __init__(
        self,
        digits: np.ndarray,
        split: str = "train",
        num_sequences: int | None = None,
        *,
        num_frames: int = 20,
        num_digits: int = 2,
        size: int = 64,
        speeds: tuple[float, float] = (SPEED, SPEED),
        seed: int = 0,
    ):
        if num_sequences is None:
            num_sequences = NUM_SEQUENCES.get(split, 0)
        super().__init__(split, num_sequences, num_frames, seed)
        if digits.ndim != 3 or not digits.size or digits.dtype != np.uint8:
            raise ValueError(
                f"digits: expected (K,28,28) uint8, K >= 1, received {digits.shape} {digits.dtype}"
            )
        if num_digits < 1:
            raise ValueError(f"num_digits: expected at least 1, received {num_digits}")
        if size < max(digits.shape[1:]):
            raise ValueError(
                f"size: expected at least {max(digits.shape[1:])} pixels, those of a digit, "
                f"received {size}"
            )
        low, high = speeds
        if not 0 <= low <= high < size:
            raise ValueError(
                f"speeds: expected 0 <= least <= greatest < {size} pixels a frame, "
                f"received {speeds}"
            )
        self.digits = digits
        self.num_digits = num_digits
        self.size = size
        self.speeds = (float(low), float(high))
        self._content = digest([digits])

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H,W,C) of the frames."""
        return self.size, self.size, 1

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the sequences, for JSON; a ``Loader``'s ``identity``."""
        return {
            **super().describe(),
            "content": self._content,
            "num_digits": self.num_digits,
            "size": self.size,
            "speeds": list(self.speeds),
        }

    def generate(self, rng: np.random.Generator) -> np.ndarray:
        """Returns one sequence, (T,S,S,1) uint8 in [0,255]."""
        frames = np.zeros((self.num_frames, self.size, self.size), np.uint8)
        height, width = self.digits.shape[1:]
        for _ in range(self.num_digits):
            digit = self.digits[rng.integers(len(self.digits))]
            angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(*self.speeds)
            start = rng.uniform(size=2)
            tops = _bounce(start[0], speed * np.sin(angle), self.size - height, self.num_frames)
            lefts = _bounce(start[1], speed * np.cos(angle), self.size - width, self.num_frames)
            for frame, top, left in zip(frames, tops, lefts, strict=True):
                window = frame[top : top + height, left : left + width]
                np.maximum(window, digit, out=window)
        return frames[..., None]


def _bounce(share: float, speed: float, room: int, num_frames: int) -> np.ndarray:
    """Returns the positions of a digit along one axis, (T,) int in 0..``room``.

    Args:
        share: where it starts, in [0,1) of the room; the first frame shows it one step later.
        speed: pixels a frame, with its sign.
        room: greatest position, pixels.
        num_frames: T.
    """
    position = share * room
    positions = np.empty(num_frames, np.int64)
    for step in range(num_frames):
        position += speed
        # At the border itself, too, as in the published code.
        if position <= 0 or position >= room:
            position = min(max(position, 0.0), float(room))
            speed = -speed
        positions[step] = position
    return positions


class MovingMNISTFile:
    """Sequences of the published file ``mnist_test_seq.npy``, a source; picklable.

    The file is (20,N,64,64) uint8, time first, N = 10,000; it stays on disk until it is read.

    Args:
        path: the file.
        num_frames: T <= 20, the first frames of each sequence.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no NumPy file, one of another shape or type, or more frames than it holds.
    """

    frame_shape = (64, 64, 1)
    scaling = None

    def __init__(self, path: str | os.PathLike[str], num_frames: int = _FILE_FRAMES):
        self.path = str(path)
        self.num_frames = num_frames
        require_file(path, "the published test sequences, mnist_test_seq.npy")
        array = self._frames
        sizes = array.shape
        if array.ndim != 4 or array.dtype != np.uint8 or sizes[0] != _FILE_FRAMES or not sizes[1]:
            hint = "; transpose it to (20,N,64,64)" if sizes[1:2] == (_FILE_FRAMES,) else ""
            raise ValueError(
                f"{path}: expected ({_FILE_FRAMES},N,64,64) uint8, the published test sequences "
                f"with time first, received {sizes} {array.dtype}{hint}"
            )
        if sizes[2:] != (64, 64):
            raise ValueError(
                f"{path}: expected frames of 64×64 pixels, (20,N,64,64) uint8, received {sizes}"
            )
        if not 1 <= num_frames <= _FILE_FRAMES:
            raise ValueError(
                f"num_inputs + num_outputs: expected 1 to {_FILE_FRAMES} frames, which a sequence "
                f"of {path} has, received {num_frames}"
            )

    def __getstate__(self) -> dict[str, Any]:
        # A memory map would be pickled with all its content.
        return {"path": self.path, "num_frames": self.num_frames}

    @functools.cached_property
    def _frames(self) -> np.ndarray:
        try:
            found = np.load(self.path, mmap_mode="r", allow_pickle=False)
            if not isinstance(found, np.ndarray):
                found.close()
                raise ValueError("an archive of several arrays")
            return found
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(
                f"{self.path}: expected a NumPy file (20,N,64,64) uint8, received another or a "
                f"damaged file ({error})"
            ) from None

    def __len__(self) -> int:
        return int(self._frames.shape[1])

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"MovingMNISTFile({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the sequences, for JSON; a ``Loader``'s ``identity``.

        The digest is that of the first and last frames of all sequences.
        """
        return {"content": self._content, "num_frames": self.num_frames}

    @functools.cached_property
    def _content(self) -> str:
        return digest([np.asarray(self._frames[[0, -1]])])

    def __getitem__(self, index: int, /) -> FrameExample:
        """Returns sequence ``index``: ``frames`` (T,64,64,1) uint8.

        Raises:
            IndexError: the index is out of range.
        """
        number = check_index(index, len(self))
        return frame_example(np.array(self._frames[: self.num_frames, number, ..., None]), number)


def read_digits(root: str | os.PathLike[str], split: str) -> np.ndarray:
    """Returns the images of the digits from which a split's sequences are drawn.

    Args:
        root: folder of MNIST's files, as ``data.datasets.mnist`` reads them.
        split: "train": all but the last 10,000 training digits; "validation": the first half of
            these; "test": the test digits where the folder has them, or else the second half.

    Returns:
        (K,28,28) uint8.

    Raises:
        FileNotFoundError: the folder has no training digits.
        ValueError: an unknown split, too few digits, or damaged files.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, received {split!r}")
    if split == "test" and _has_test_digits(Path(root)):
        return read_mnist(root, "test").images
    if split == "train":
        return read_mnist(root, "train", validation=HELD_BACK).images
    held_back = read_mnist(root, "validation", validation=HELD_BACK).images
    half = HELD_BACK // 2
    return held_back[:half] if split == "validation" else held_back[half:]


def _has_test_digits(root: Path) -> bool:
    return (root / "test.npz").is_file() or any(root.glob("t10k-images*"))
