"""Data of frame prediction: the choice of a data set, its splits, and their batches."""

import dataclasses
from typing import Any

import jax

from data.frames import (
    SPLITS,
    BouncingBalls,
    FrameSource,
    GeneratedSequences,
    MovingMNIST,
    MovingMNISTFile,
    read_digits,
)
from data.loader import Loader
from flaxnets.configuration import check_at_least, nearest, path_field, runtime

DATASETS = ("moving_mnist", "bouncing_balls")
_FIXED_SEED = 0


@dataclasses.dataclass
class FrameDataConfig:
    """Data set of sequences of frames, the length of its sequences, and its split."""

    dataset: str = "moving_mnist"
    """``moving_mnist``, generated from the digits in ``root``; ``bouncing_balls``, embedded."""
    root: str = path_field(runtime=True)
    """``moving_mnist``: folder of MNIST's files."""
    test_file: str = path_field(runtime=True)
    """``moving_mnist``: the published ``mnist_test_seq.npy``, in place of a generated test split;
    empty: generated."""
    num_inputs: int = 10
    """Frames that are seen."""
    num_outputs: int = 10
    """Frames that are predicted, the horizon."""
    size: int = 64
    """Side of the frames, pixels."""
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


def check_frame_data(config: FrameDataConfig) -> None:
    """Checks the values that need no data.

    Raises:
      ValueError: an unknown name, a number out of range, or no ``root`` where one is needed.
    """
    if config.dataset not in DATASETS:
        hint = nearest(config.dataset, DATASETS)
        raise ValueError(f"data.dataset: unknown {config.dataset!r}{hint}")
    counts = [f"{split}_sequences" for split in SPLITS]
    least = dict.fromkeys(["num_inputs", "num_outputs", "num_objects", *counts], 1)
    check_at_least("data", config, {**least, "size": 8, "num_threads": 0})
    if len(config.speeds) != 2:
        raise ValueError(
            f"data.speeds: expected the least and the greatest speed, as 3.0,5.0, received "
            f"{config.speeds}"
        )
    if config.dataset != "bouncing_balls" and not config.root:
        raise ValueError(
            "data.root: expected the folder of MNIST's files; give --config.data.root=FOLDER"
        )


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
    return _make_source(config, split, seed if split == "train" else _FIXED_SEED)


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
    if split == "test" and config.test_file:
        return MovingMNISTFile(config.test_file, config.num_frames)
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
