"""Classified sequences in one NPZ file, with the arrays of both splits.

``SPLIT_x`` (N,T,D) numbers, zeros behind the end of each sequence; ``SPLIT_lengths`` (N,) integers,
absent where all have T steps; ``SPLIT_y`` (N,) integers, indices into ``classes`` (K,) texts.
"""

import os
from pathlib import Path

import numpy as np

from data.datasets.number_tables import load_npz
from data.series.sequences import LabelledSequences
from data.series.tables import nearest, shorten


def read_sequence_npz(path: str | os.PathLike[str], split: str) -> LabelledSequences:
    """Reads one split of a file.

    Args:
        path: the file.
        split: as the names of the arrays begin, "train" or "test".

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no such split, arrays of other shapes, or labels without a class.
    """
    arrays = load_npz(path)
    splits = [name.removesuffix("_x") for name in arrays if name.endswith("_x")]
    if split not in splits or not {f"{split}_y", "classes"} <= arrays.keys():
        raise ValueError(
            f"{path}: expected the arrays {split}_x, {split}_y and classes, received "
            f"{shorten(list(arrays)) or 'none'}{nearest(split, splits)}"
        )
    x, y, classes = arrays[f"{split}_x"], arrays[f"{split}_y"], arrays["classes"]
    lengths = arrays.get(f"{split}_lengths", np.full(len(x), x.shape[1] if x.ndim > 1 else 0))
    if x.ndim != 3 or not x.size or y.shape != x.shape[:1] or lengths.shape != x.shape[:1]:
        raise ValueError(
            f"{path}: expected {split}_x (N,T,D), {split}_y (N,) and {split}_lengths (N,), "
            f"received {x.shape}, {y.shape} and {lengths.shape}"
        )
    if x.dtype.kind not in "fiu" or np.isinf(x).any():
        raise ValueError(
            f"{path}: expected {split}_x of finite numbers, NaN where one is missing, received "
            f"{'infinite ones' if x.dtype.kind == 'f' else x.dtype}"
        )
    if lengths.min() < 1 or lengths.max() > x.shape[1]:
        raise ValueError(
            f"{path}: expected {split}_lengths of 1 to {x.shape[1]}, received {lengths.min()} to "
            f"{lengths.max()}"
        )
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= len(classes):
        raise ValueError(
            f"{path}: expected {split}_y of integers 0 to {len(classes) - 1}, received {y.dtype} "
            f"{y.min()} to {y.max()}"
        )
    return LabelledSequences(
        tuple(row[:length] for row, length in zip(x, lengths, strict=True)),
        y.astype(np.int32),
        tuple(map(str, classes)),
        name=Path(path).stem,
    )
