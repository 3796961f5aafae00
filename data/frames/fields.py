"""Gridded fields in time, of NPZ, NumPy or Zarr: windows of T steps, split by time.

An array is (T,H,W,C), or (T,H,W) of one channel, one long series; or (N,T,H,W,C), N series of equal
length. Series are cut into consecutive parts of time, so that no window of one split shares a step
with another; with N series, whole series are cut in their order, which is taken for that of time.
The scaling comes from the training part alone. Missing values (NaN) are refused: a cell of a
network would spread them over the field.
"""

import functools
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.batches import FrameExample
from data.datasets.number_tables import load_npz
from data.frames.sequences import SPLITS, frame_example
from data.frames.video_windows import check_shares, cut_in_time
from data.series.scaling import Scaling
from data.series.sequences import check_index
from data.series.tables import nearest, shorten

KINDS = ("standard", "min_max", "none")
"""Scalings, as in ``data.series.scaling``."""

_BLOCK_BYTES = 2**26  # read at once


class FieldFile:
    """Fields of one file; picklable, and a Zarr array stays on disk until it is read.

    Args:
        path: ``.npz``, ``.npy``, or a folder or ``.zip`` in the format of Zarr 2 or 3.
        array: name of the array in an NPZ file or Zarr group; empty: the only one.

    Attributes:
        shape: (N,T,H,W,C); N is 1 of one series.
        dtype: of the array.

    Raises:
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: Zarr is not installed.
        ValueError: another format, no such array, or one of another rank or type.
    """

    def __init__(self, path: str | os.PathLike[str], array: str = ""):
        self.path = str(path)
        self.array = array
        shape, dtype = tuple(self._values.shape), np.dtype(self._values.dtype)
        self._given = shape
        if len(shape) not in (3, 4, 5) or not math.prod(shape) or dtype.kind not in "fiu":
            raise ValueError(
                f"{self.path}: expected numbers (T,H,W,C), (T,H,W) or (N,T,H,W,C), received "
                f"{shape} {dtype}"
            )
        if len(shape) == 3:
            shape = (*shape, 1)
        self.shape: tuple[int, int, int, int, int] = (1,) * (5 - len(shape)) + shape
        self.dtype = dtype

    def __getstate__(self) -> dict[str, Any]:
        # Workers read the file again; in memory it may be large.
        return {key: value for key, value in self.__dict__.items() if key != "_values"}

    @functools.cached_property
    def _values(self) -> Any:
        path = Path(self.path)
        ending = path.suffix.lower()
        if ending == ".npz":
            return _pick(self.path, load_npz(path), self.array)
        if ending == ".npy":
            return _load_npy(path)
        if not path.exists():
            raise FileNotFoundError(
                f"{self.path}: expected fields (.npz, .npy or .zarr), which do not exist"
            )
        return _open_zarr(self.path, self.array)

    def read(self, series: int, begin: int, end: int) -> np.ndarray:
        """Returns steps ``begin`` to ``end`` of a series, (T,H,W,C) in the array's own type."""
        steps = slice(begin, end)
        values = self._values[series, steps] if len(self._given) == 5 else self._values[steps]
        return np.asarray(values).reshape(-1, *self.shape[2:])

    def blocks(self, series: int, begin: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (first step, values) of parts of these steps that fit into memory."""
        bytes_a_step = math.prod(self.shape[2:]) * self.dtype.itemsize
        size = max(1, _BLOCK_BYTES // bytes_a_step)
        for first in range(begin, end, size):
            yield first, self.read(series, first, min(first + size, end))


class Fields:
    """Fields of a file with their split and scaling, from which ``FieldWindows`` are made.

    Reads all of the file once, for the scaling and to find missing values.

    Args:
        file: the fields.
        shares: of train, validation and, if there are three, test.
        kind: one of ``KINDS``.

    Attributes:
        parts: split -> (series, begin, end) of its consecutive steps.
        scaling: of the channels, fitted on the training part.
        content: digest of all values.

    Raises:
        ValueError: an unknown kind, shares out of range, too few steps or series for them, or
            values that are missing or infinite.
    """

    def __init__(
        self,
        file: FieldFile,
        shares: Sequence[float] = (0.8, 0.1, 0.1),
        kind: str = "standard",
    ):
        if kind not in KINDS:
            raise ValueError(f"scaling: expected one of {', '.join(KINDS)}, received {kind!r}")
        check_shares(shares)
        self.file = file
        num_series, num_steps = file.shape[:2]
        names, count = SPLITS[: len(shares)], num_series if num_series > 1 else num_steps
        cuts = cut_in_time(count, shares)
        if any(begin == end for begin, end in cuts):
            raise ValueError(
                f"shares: expected parts of at least one of the {count} "
                f"{'series' if num_series > 1 else 'steps'} of {file.path}, received "
                f"{tuple(shares)}"
            )
        self.parts: dict[str, tuple[tuple[int, int, int], ...]] = {
            name: tuple((series, 0, num_steps) for series in range(begin, end))
            if num_series > 1
            else ((0, begin, end),)
            for name, (begin, end) in zip(names, cuts, strict=True)
        }
        self.scaling = Scaling(kind, *self._survey(kind))  # type: ignore[arg-type]

    def _survey(self, kind: str) -> tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...]]:
        """Reads all values once; returns offsets, divisors and constant channels of the scaling."""
        found = hashlib.sha256(f"{self.file.shape}{self.file.dtype.str}".encode())
        channels = self.file.shape[-1]
        count, mean, squares = 0, np.zeros(channels), np.zeros(channels)
        least, most = np.full(channels, np.inf), np.full(channels, -np.inf)
        for series in range(self.file.shape[0]):
            for first, block in self.file.blocks(series, 0, self.file.shape[1]):
                found.update(np.ascontiguousarray(block).tobytes())
                self._check_finite(series, first, block)
                for part, begin, end in self.parts["train"]:
                    if part != series:
                        continue
                    mine = block[max(begin - first, 0) : max(end - first, 0)]
                    values = mine.reshape(-1, channels).astype(np.float64)
                    if not len(values):
                        continue
                    # Chan, Golub and LeVeque (1983): means and squares of parts, joined.
                    new, shift = count + len(values), values.mean(0) - mean
                    squares += ((values - values.mean(0)) ** 2).sum(0)
                    squares += shift**2 * (count * len(values) / new)
                    mean, count = mean + shift * (len(values) / new), new
                    least, most = np.minimum(least, values.min(0)), np.maximum(most, values.max(0))
        self.content = found.hexdigest()[:32]
        constant = most - least <= 1e-12 * np.maximum(np.abs(least), np.abs(most))
        offsets, divisors = np.zeros(channels), np.ones(channels)
        if kind == "standard":
            offsets, divisors = np.where(constant, least, mean), np.sqrt(squares / count)
        elif kind == "min_max":
            offsets, divisors = least, most - least
        divisors = np.where(constant, 1.0, divisors)
        numbers = tuple(np.flatnonzero(constant).tolist())
        return tuple(offsets.tolist()), tuple(divisors.tolist()), numbers

    def _check_finite(self, series: int, first: int, block: np.ndarray) -> None:
        if block.dtype.kind != "f" or np.isfinite(block).all():
            return
        step, row, column, channel = np.argwhere(~np.isfinite(block))[0].tolist()
        kind = "missing (NaN)" if np.isnan(block[step, row, column, channel]) else "infinite"
        place = f"series {series}, " if self.file.shape[0] > 1 else ""
        raise ValueError(
            f"{self.file.path}: expected finite values, received {kind} ones, first at {place}step "
            f"{first + step}, row {row}, column {column}, channel {channel}; fill them before, as "
            "by interpolation or by a constant beside a channel that marks them"
        )


class FieldWindows:
    """Windows of T steps of fields, a source of ``FrameExample``; picklable.

    ``frames`` (T,H,W,C) float32, scaled.

    Args:
        fields: with split and scaling.
        split: "train", "validation" or, if there is one, "test".
        num_frames: T, at least 1; a window lies wholly in its part.
        stride: steps from one frame of a window to the next, at least 1.
        window_stride: steps from one window to the next, at least 1; 0: windows do not overlap.

    Attributes:
        windows: (N,2) int64, series and first step.

    Raises:
        ValueError: no such split, numbers out of range, or no part that is long enough.
    """

    def __init__(
        self,
        fields: Fields,
        split: str,
        *,
        num_frames: int,
        stride: int = 1,
        window_stride: int = 1,
    ):
        if num_frames < 1 or stride < 1 or window_stride < 0:
            raise ValueError(
                "num_frames, stride, window_stride: expected at least 1, 1 and 0, received "
                f"{num_frames}, {stride} and {window_stride}"
            )
        if split not in fields.parts:
            raise ValueError(
                f"split: expected one of {', '.join(fields.parts)}, received {split!r}; three "
                "shares make a test split"
            )
        self.fields = fields
        self.split = split
        self.num_frames = num_frames
        self.stride = stride
        self.window_stride = window_stride
        span = (num_frames - 1) * stride + 1
        parts = fields.parts[split]
        windows = [
            (series, first)
            for series, begin, end in parts
            for first in range(begin, end - span + 1, window_stride or span)
        ]
        if not windows:
            longest = max(end - begin for _, begin, end in parts)
            raise ValueError(
                f"num_inputs + num_outputs: expected windows of {num_frames} steps at stride "
                f"{stride}, which span {span}, to fit into the {split} part, received {longest} "
                "steps; take a shorter horizon or a larger share"
            )
        self.windows = np.array(windows, np.int64)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H,W,C) of the frames."""
        return self.fields.file.shape[2:]

    @property
    def scaling(self) -> Scaling:
        """Scaling of the channels."""
        return self.fields.scaling

    def __len__(self) -> int:
        return len(self.windows)

    def __repr__(self) -> str:
        # grain compares sources by it when it restores an iterator.
        return f"FieldWindows({self.describe()})"

    def describe(self) -> dict[str, Any]:
        """Returns what identifies the examples, for JSON; a ``Loader``'s ``identity``."""
        return {
            "content": self.fields.content,
            "parts": [list(part) for part in self.fields.parts[self.split]],
            "num_frames": self.num_frames,
            "stride": self.stride,
            "window_stride": self.window_stride,
            "scaling": self.scaling.to_json(),
        }

    def __getitem__(self, index: int, /) -> FrameExample:
        """Returns window ``index``: ``frames`` (T,H,W,C) float32, scaled.

        Raises:
            IndexError: the index is out of range.
        """
        number = check_index(index, len(self))
        series, first = map(int, self.windows[number])
        end = first + (self.num_frames - 1) * self.stride + 1
        values = self.fields.file.read(series, first, end)[:: self.stride]
        return frame_example(self.scaling.apply(values), number)


def read_last_fields(
    path: str | os.PathLike[str], array: str, num_frames: int, stride: int, scaling: Scaling
) -> np.ndarray:
    """Returns the last fields of a file, scaled, (T,H,W,C) float32.

    Args:
        path: as of ``FieldFile``.
        array: its name; empty: the only one.
        num_frames: T.
        stride: steps from one frame to the next.
        scaling: of the trained network.

    Raises:
        ValueError: as ``FieldFile``; several series; too few steps, another number of channels, or
            missing values.
    """
    file = FieldFile(path, array)
    num_series, num_steps, *_, channels = file.shape
    span = (num_frames - 1) * stride + 1
    if num_series > 1:
        raise ValueError(
            f"{path}: expected one series (T,H,W,C), whose continuation is predicted, received "
            f"{num_series}; give a file for each"
        )
    if num_steps < span:
        raise ValueError(
            f"{path}: expected at least the {span} steps that {num_frames} inputs at stride "
            f"{stride} span, received {num_steps}"
        )
    if channels != len(scaling.offsets):
        raise ValueError(
            f"{path}: expected {len(scaling.offsets)} channels, as in training, received {channels}"
        )
    values = file.read(0, num_steps - span, num_steps)[::stride]
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{path}: expected finite values, received missing or infinite ones")
    return scaling.apply(values)


def _pick(path: str, arrays: Any, name: str) -> Any:
    """Returns the array of a name, or the only one."""
    names = sorted(arrays)
    if name and name not in names:
        raise ValueError(
            f"{path}: expected an array {name!r}, the value of --config.data.array, received "
            f"{shorten(names) or 'none'}{nearest(name, names)}"
        )
    if not name and len(names) != 1:
        raise ValueError(
            f"{path}: expected one array, or the name of one by --config.data.array, received "
            f"{shorten(names) or 'none'}"
        )
    return arrays[name or names[0]]


def _load_npy(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a NumPy file, which does not exist")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path}: expected a NumPy file of numbers, received another or a damaged file "
            f"({error})"
        ) from None


def _open_zarr(path: str, name: str) -> Any:
    try:
        import zarr
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path}: reading Zarr needs the extra zarr: pip install 'flaxnets[zarr]'"
        ) from None
    try:
        found = zarr.open(path, mode="r")
    except Exception as error:  # Zarr raises a dozen kinds, of damaged metadata also KeyError.
        raise ValueError(
            f"{path}: expected .npz, .npy, or an array or group of Zarr, received another or a "
            f"damaged one ({error})"
        ) from None
    if isinstance(found, zarr.Group):
        return _pick(path, dict(found.arrays()), name)
    if name:
        raise ValueError(
            f"{path}: expected a group with an array {name!r}, the value of --config.data.array, "
            "received one array without a name"
        )
    return found
