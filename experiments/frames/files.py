"""Data of frame prediction: the choice of a data set, its splits, and their batches."""

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.frames import (
    SPLITS,
    BouncingBalls,
    FieldFile,
    Fields,
    FieldWindows,
    FrameFormat,
    FrameSource,
    GeneratedSequences,
    MovingMNIST,
    MovingMNISTFile,
    Section,
    Videos,
    VideoWindows,
    find_videos,
    read_digits,
    read_last_fields,
    split_videos,
)
from data.loader import Loader
from data.series.scaling import Scaling
from flaxnets.configuration import check_at_least, nearest, path_field, runtime

DATASETS = ("moving_mnist", "bouncing_balls", "videos", "fields")
FIELD_ENDINGS = (".npz", ".npy", ".zarr")
_FIXED_SEED = 0


_FIELDS = ("num_inputs", "shares", "split_by", "scaling", "root", "size", "speeds")


@dataclasses.dataclass
class FrameDataConfig:
    """Data set of sequences of frames, the length of its sequences, and its split."""

    dataset: str = "moving_mnist"
    """``moving_mnist``, generated from the digits in ``root``; ``bouncing_balls``, embedded;
    ``videos``, those in the folder ``root``; ``fields``, grids of the file ``root``."""
    root: str = path_field(runtime=True)
    """Folder of MNIST's files, or of videos; or a file of fields, ``.npz``, ``.npy`` or Zarr."""
    test_file: str = path_field(runtime=True)
    """``moving_mnist`` of ``size`` 64: the published ``mnist_test_seq.npy``, in place of a
    generated test split; empty: generated."""
    num_inputs: int = 10
    """Frames that are seen."""
    num_outputs: int = 10
    """Frames that are predicted, the horizon."""
    size: int = 64
    """Side of the frames, pixels; of ``videos`` their height. Fields have their own size."""
    width: int = 0
    """``videos``: width of the frames, pixels; 0: as ``size``."""
    grey: bool = True
    """``videos``: luma, one channel; False: RGB."""
    stride: int = 1
    """``videos``, ``fields``: frames of the data from one frame of a sequence to the next."""
    window_stride: int = 0
    """``videos``, ``fields``: frames from one sequence to the next; 0: they do not overlap."""
    split_by: str = "video"
    """``videos``: ``video``, whole ones are drawn; ``time``, each is cut into consecutive parts.
    Folders named train, validation and test come before it. Fields are always cut in time."""
    shares: tuple[float, ...] = (0.8, 0.1, 0.1)
    """``videos``, ``fields``: of train, validation and, if there are three, test."""
    split_seed: int = 0
    """``videos``: of the draw."""
    array: str = ""
    """``fields``: name of the array in the file; empty: the only one."""
    scaling: str = "standard"
    """``fields``: ``standard``, ``min_max`` or ``none``, of each channel, fitted on the training
    part."""
    num_objects: int = 2
    """Digits, or balls, in a sequence."""
    speeds: tuple[float, ...] = (3.6, 3.6)
    """``moving_mnist``: least and greatest speed, pixels a frame; ``3.0,5.0`` as Shi et al."""
    train_sequences: int = 10_000
    """Generated data: sequences of an epoch, drawn anew in each."""
    validation_sequences: int = 1_000
    """Generated data: fixed sequences."""
    test_sequences: int = 10_000
    """Generated data: fixed sequences."""
    num_threads: int = runtime(1)
    """Threads that make or read examples; 0: that of the caller."""

    @property
    def num_frames(self) -> int:
        """T, frames of a sequence."""
        return self.num_inputs + self.num_outputs

    @property
    def form(self) -> FrameFormat:
        """Size and colour of images."""
        grey = self.grey or self.dataset != "videos"
        return FrameFormat(self.size, self.width or self.size, grey)


def check_frame_data(config: FrameDataConfig) -> None:
    """Checks the values that need no data.

    Raises:
      ValueError: an unknown name, a number out of range, no ``root`` where one is needed, or a
        ``test_file`` of other frames.
    """
    if config.dataset not in DATASETS:
        hint = nearest(config.dataset, DATASETS)
        raise ValueError(f"data.dataset: unknown {config.dataset!r}{hint}")
    counts = [f"{split}_sequences" for split in SPLITS]
    least = dict.fromkeys(["num_inputs", "num_outputs", "num_objects", *counts], 1)
    zero = ("num_threads", "width", "window_stride", "split_seed")
    check_at_least("data", config, {**least, "size": 8, "stride": 1, **dict.fromkeys(zero, 0)})
    if len(config.speeds) != 2:
        raise ValueError(
            f"data.speeds: expected the least and the greatest speed, as 3.0,5.0, received "
            f"{config.speeds}"
        )
    if config.test_file and config.dataset != "moving_mnist":
        raise ValueError(
            f"data.test_file: expected with data.dataset=moving_mnist alone, received "
            f"{config.test_file} with {config.dataset!r}; give --config.data.test_file="
        )
    if config.test_file and config.form.shape != MovingMNISTFile.frame_shape:
        side = MovingMNISTFile.frame_shape[0]
        raise ValueError(
            f"data.size: expected {side}, as the published sequences of data.test_file have, "
            f"received {config.size}; train on {side}, or give --config.data.test_file= for a "
            "generated test split"
        )
    if config.dataset != "bouncing_balls" and not config.root:
        expected = {
            "moving_mnist": "the folder of MNIST's files",
            "videos": "a folder of videos",
            "fields": "a file of fields, .npz, .npy or Zarr",
        }[config.dataset]
        raise ValueError(f"data.root: expected {expected}; give --config.data.root=PATH")


def make_frame_source(config: FrameDataConfig, split: str, seed: int = 0) -> FrameSource:
    """Returns the sequences of a split.

    Args:
      config: the data set.
      split: ``train``, ``validation`` or ``test``.
      seed: of the training sequences; those of validation and test are the same for all seeds.

    Raises:
      FileNotFoundError: the files are not there.
      ValueError: an unknown split, values out of range, or other data than expected.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, received {split!r}")
    check_frame_data(config)
    try:
        return _make_source(config, split, seed if split == "train" else _FIXED_SEED)
    except ValueError as error:
        # The data name their own arguments, which are fields here.
        if re.match(rf"({'|'.join(_FIELDS)})\b", str(error)):
            raise ValueError(f"data.{error}") from error
        raise


def make_frame_loader(
    source: FrameSource, *, batch_size: int, train: bool, seed: int = 0, num_threads: int = 1
) -> Loader:
    """Returns the batches of a source, for this process: without end in training, else once.

    In training generated sequences are drawn anew in every epoch: a sequence depends on the seed
    and its position alone, so a run resumes exactly.

    Args:
      source: of ``make_frame_source``.
      batch_size: rows of a global batch.
      train: reshuffles, and repeats without end.
      seed: of the order and of the drawn sequences.
      num_threads: threads that make or read examples; 0: that of the caller.
    """
    options: dict[str, Any] = {}
    records: Any = source
    if train and isinstance(source, GeneratedSequences):
        records, options["transform"] = range(len(source)), source.draw
    return Loader(
        records,
        batch_size=batch_size,
        train=train,
        identity=source.describe(),
        seed=seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=num_threads,
        **options,
    )


def read_last_frames(
    config: FrameDataConfig, path: str, scaling: Scaling | None = None
) -> np.ndarray:
    """Returns the last ``num_inputs`` frames of a file in the form that a network reads.

    Args:
      config: of the trained network.
      path: a video, or an array of images or fields.
      scaling: of a network that was trained on fields; None: on images.

    Returns:
      (T,H,W,C) uint8 in [0,255] of images, float32 of fields.

    Raises:
      FileNotFoundError: there is no such file.
      VideoError: a video that cannot be decoded.
      ValueError: a file that is too short, or of another kind or size than in training.
    """
    is_array = Path(path).suffix.lower() in FIELD_ENDINGS
    if scaling is not None:
        if not is_array:
            raise ValueError(
                f"{path}: expected fields ({', '.join(FIELD_ENDINGS)}), on which the network was "
                "trained"
            )
        return read_last_fields(path, config.array, config.num_inputs, config.stride, scaling)
    if not is_array:
        return config.form.read_last(path, config.num_inputs, config.stride)
    file = FieldFile(path)
    num_series, num_frames, *shape = file.shape
    expected = config.form.shape
    if num_series > 1 or tuple(shape) != expected or file.dtype != np.uint8:
        sizes = ",".join(map(str, expected))
        raise ValueError(
            f"{path}: expected one sequence of images (T,{sizes}) uint8, as in training, received "
            f"{file.shape[int(num_series == 1) :]} {file.dtype}"
        )
    span = (config.num_inputs - 1) * config.stride + 1
    if num_frames < span:
        raise ValueError(
            f"{path}: expected at least the {span} frames that {config.num_inputs} inputs at "
            f"stride {config.stride} span, received {num_frames}"
        )
    return file.read(0, num_frames - span, num_frames)[:: config.stride]


def _make_source(config: FrameDataConfig, split: str, seed: int) -> FrameSource:
    count = getattr(config, f"{split}_sequences")
    if config.dataset == "bouncing_balls":
        return BouncingBalls(
            split,
            count,
            num_frames=config.num_frames,
            num_balls=config.num_objects,
            size=config.size,
            seed=seed,
        )
    steps = {
        "num_frames": config.num_frames,
        "stride": config.stride,
        "window_stride": config.window_stride,
    }
    if config.dataset == "videos":
        videos, sections = _videos(
            config.root, config.split_by, tuple(config.shares), config.split_seed
        )
        if split not in sections:
            raise ValueError(
                f"split: expected one of {', '.join(sections)}, received {split!r}; put videos "
                "into a folder of that name, or give three shares"
            )
        return VideoWindows(videos, sections[split], form=config.form, **steps)
    if config.dataset == "fields":
        fields = _fields(config.root, config.array, tuple(config.shares), config.scaling)
        return FieldWindows(fields, split, **steps)
    if config.test_file:  # Of training, too: a wrong file is told before it, not after.
        published = MovingMNISTFile(config.test_file, config.num_frames)
        if split == "test":
            return published
    return MovingMNIST(
        read_digits(config.root, split),
        split,
        count,
        num_frames=config.num_frames,
        num_digits=config.num_objects,
        size=config.size,
        speeds=(config.speeds[0], config.speeds[1]),
        seed=seed,
    )


# All splits of a run share what has been read: counting frames and fitting the scaling read all
# data once.
@functools.lru_cache(maxsize=1)
def _videos(
    root: str, split_by: str, shares: tuple[float, ...], seed: int
) -> tuple[Videos, dict[str, tuple[Section, ...]]]:
    videos = find_videos(root)
    return videos, split_videos(videos, split_by=split_by, shares=shares, seed=seed)


@functools.lru_cache(maxsize=1)
def _fields(root: str, array: str, shares: tuple[float, ...], scaling: str) -> Fields:
    return Fields(FieldFile(root, array), shares, scaling)
