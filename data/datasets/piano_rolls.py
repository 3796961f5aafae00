"""Piano rolls: sequences of steps with the keys that sound.

An NPZ file holds for each of ``train``, ``valid`` and ``test`` an array (steps, 88) of zeros and
ones, all sequences one after another, and ``SPLIT_lengths``, the steps of each. Key 0 is MIDI 21.
The sets of Boulanger-Lewandowski et al. (2012): JSB Chorales, Nottingham, MuseData, Piano-midi.

The published figure is the negative log-likelihood of a step given those before it, summed over the
keys and averaged over all predicted steps, in nats; the first step of a sequence is not predicted.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.datasets.list_file import SPLIT_NAMES
from data.datasets.number_tables import load_npz
from data.series.tables import nearest, shorten


@dataclass(frozen=True, eq=False)
class PianoRolls:
    """One split of a set.

    Attributes:
        name: of the set, or of the folder.
        steps: (N,88) uint8 zeros and ones, all sequences one after another.
        lengths: (S,) int64 steps of each sequence.
    """

    name: str
    steps: np.ndarray
    lengths: np.ndarray

    def sequences(self) -> list[np.ndarray]:
        """Returns (T_i,88) uint8 of each sequence."""
        return np.split(self.steps, np.cumsum(self.lengths)[:-1])


def read_piano_rolls(path: str | os.PathLike[str], split: str, name: str = "") -> PianoRolls:
    """Reads one split of a set.

    Args:
        path: the NPZ file, or a folder of such files.
        split: "train", "validation" or "test".
        name: of the file in a folder, without ``.npz``; "": all its files, in the order of their
            names.

    Raises:
        FileNotFoundError: there is no such file, or none in the folder.
        ValueError: an unknown name (the message suggests the nearest), a file without the split, or
            arrays that are no piano rolls.
    """
    path = Path(path)
    if split not in SPLIT_NAMES.values():
        raise ValueError(f"split: expected train, validation or test, received {split!r}")
    if not path.is_dir():
        return _read(path, split)
    found = sorted(path.glob("*.npz"))
    if not found:
        raise FileNotFoundError(f"{path}: expected a folder of .npz files, received none in it")
    names = [file.stem for file in found]
    if name:
        if name not in names:
            raise ValueError(
                f"name: expected one of {shorten(names)} in {path}, received {name!r}"
                f"{nearest(name, names)}"
            )
        return _read(path / f"{name}.npz", split)
    sets = [_read(file, split) for file in found]
    keys = {rolls.steps.shape[1] for rolls in sets}
    if len(keys) > 1:
        raise ValueError(
            f"{path}: expected piano rolls with the same keys, received {', '.join(map(str, keys))}"
        )
    return PianoRolls(
        path.name,
        np.concatenate([rolls.steps for rolls in sets]),
        np.concatenate([rolls.lengths for rolls in sets]),
    )


def _read(path: Path, split: str) -> PianoRolls:
    arrays = load_npz(path)
    keys = [key for key in arrays if SPLIT_NAMES.get(key) == split]
    if not keys or f"{keys[0]}_lengths" not in arrays:
        raise ValueError(
            f"{path}: expected the arrays of {split}, as train and train_lengths, received "
            f"{shorten(list(arrays)) or 'none'}"
        )
    steps, lengths = arrays[keys[0]], arrays[f"{keys[0]}_lengths"].astype(np.int64)
    if (
        steps.ndim != 2
        or not steps.size
        or steps.dtype.kind not in "uib"
        or steps.min() < 0
        or steps.max() > 1
    ):
        raise ValueError(
            f"{path}: expected {keys[0]} (steps, keys) of zeros and ones, received {steps.shape} "
            f"{steps.dtype}"
        )
    if lengths.ndim != 1 or lengths.sum() != len(steps) or (lengths < 1).any():
        raise ValueError(
            f"{path}: expected {keys[0]}_lengths above 0 with the sum {len(steps)}, the steps of "
            f"{keys[0]}, received the sum {lengths.sum()}"
        )
    return PianoRolls(path.stem, steps.astype(np.uint8), lengths)
