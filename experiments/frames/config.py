"""Configuration that the experiments on frame prediction share: model, task, loaders, scores."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.frames import FrameSource
from data.loader import Loader
from data.series.scaling import Scaling
from experiments.frames.continuation import ContinuedFrames
from experiments.frames.files import (
    FrameDataConfig,
    check_frame_data,
    make_frame_loader,
    make_frame_source,
)
from flaxnets.configuration import nearest
from flaxnets.models.forecaster import (
    EncoderForecaster,
    ForecasterConfig,
    NextFrameForecaster,
    make_forecaster,
)
from flaxnets.tasks.frame_prediction import LOSSES, FramePrediction, score_frames
from flaxnets.tasks.frame_sampling import NONE, FrameSamplingConfig, make_frame_sampling
from flaxnets.training.config import Config, Scorer
from flaxnets.training.workdir import write_text_atomically

FRAMES_FILE = "frames.json"
"""File of the workdir that keeps the shape of a frame and the scaling of fields, so that the model
is built without the data."""


@dataclasses.dataclass
class FramePredictionConfig(ContinuedFrames, Config):
    """Experiment that predicts the frames after given ones."""

    name: str = "forecaster"
    best_metric: str = "mse_frame"
    best_mode: str = "min"
    loss_kind: str = "mse"
    """``mse``, ``l1``, ``mse_l1``, or ``cross_entropy`` of images."""
    all_frames: bool = True
    """The loss counts every predicted frame, not only those after the given ones."""
    auxiliary_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    """Weights of the model's auxiliary losses by name."""
    thresholds: tuple[float, ...] = ()
    """Of events, in the units of the fields or, of images, in [0,1]: evaluations have a CSI and an
    HSS at each. Fields of one channel only."""
    ssim_range: float = 1.0
    """Range of the values in SSIM: 1, or 2 as in tables made with OpenSTL."""
    data: FrameDataConfig = dataclasses.field(default_factory=FrameDataConfig)
    sampling: FrameSamplingConfig = dataclasses.field(default_factory=FrameSamplingConfig)
    model: ForecasterConfig = dataclasses.field(default_factory=ForecasterConfig)

    def __post_init__(self) -> None:
        # No fields, so they are neither flags nor part of config.json.
        self._sources: dict[str, FrameSource] = {}
        self._saved: Mapping[str, Any] | None = None

    # ---- Data --------------------------------------------------------------------------------

    def source(self, split: str) -> FrameSource:
        """Returns the sequences of a split, made once."""
        if split not in self._sources:
            self._sources[split] = make_frame_source(self.data, split, self.seed)
        return self._sources[split]

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(H,W,C) of a frame: the trained model's, or else the data's."""
        if self._saved is not None:
            height, width, channels = self._saved["frame_shape"]
            return height, width, channels
        return self.source("train").frame_shape

    def field_scaling(self) -> Scaling | None:
        """Returns the scaling of the training's fields; None: images."""
        if self._saved is None:
            return self.source("train").scaling
        scaling = self._saved["scaling"]
        return None if scaling is None else Scaling.from_json(scaling)

    def make_data(self, split: str) -> Loader:
        """Returns the batches of a split: ``train`` without end, any other once and in order."""
        return make_frame_loader(
            self.source(split),
            batch_size=self.batch_size,
            train=split == "train",
            seed=self.seed,
            num_threads=self.data.num_threads,
        )

    # ---- Model and task ----------------------------------------------------------------------

    def make_model(self) -> NextFrameForecaster | EncoderForecaster:
        """Returns the network that ``model`` describes, for the frames of the data."""
        height, width, channels = self.frame_shape
        size = self.model.patch_size
        if size > 0 and (height % size or width % size):
            raise ValueError(
                f"model.patch_size: expected a divisor of height and width of the frames, "
                f"{height}×{width}, received {size}"
            )
        return make_forecaster(self.model, channels, logits=self.loss_kind == "cross_entropy")

    def make_task(self) -> FramePrediction:
        """Returns the task: its loss, thresholds and schedule of inputs."""
        return FramePrediction(
            self.data.num_inputs,
            loss_kind=self.loss_kind,
            all_frames=self.all_frames,
            auxiliary_weights=tuple(sorted(self.auxiliary_weights.items())),
            sampling=make_frame_sampling(self.sampling),
            thresholds=self._scaled_thresholds(),
            ssim_range=self.ssim_range,
        )

    def _scaled_thresholds(self) -> tuple[float, ...]:
        """Returns the thresholds in the units that the network reads."""
        scaling = self.field_scaling() if self.thresholds else None
        if scaling is None:
            return self.thresholds
        if len(scaling.offsets) != 1:
            raise ValueError(
                "thresholds: expected none for fields of several channels, whose units differ, "
                f"received {self.thresholds} for {len(scaling.offsets)} channels"
            )
        offset, divisor = scaling.offsets[0], scaling.divisors[0]
        return tuple((threshold - offset) / divisor for threshold in self.thresholds)

    def make_scorer(self, split: str, *, complete: bool = False) -> Scorer | None:
        """Returns the function to CSI and HSS and, complete, the error of each step ahead."""
        if not self.thresholds and not complete:
            return None  # So that a misspelt ``best_metric`` is found before training.

        def score(records: Any) -> Mapping[str, float]:
            return score_frames(records, self.thresholds, horizon=complete)

        return score

    def scored_metrics(self, split: str) -> tuple[str, ...]:
        """Returns the names of CSI and HSS at the thresholds."""
        return tuple(f"{name}_{x:g}" for x in self.thresholds for name in ("csi", "hss"))

    def validate(self) -> None:
        """Checks the values as ``Config.validate``, and those of data, loss and schedule."""
        super().validate()
        check_frame_data(self.data)
        if self.loss_kind not in LOSSES:
            raise ValueError(
                f"loss_kind: unknown {self.loss_kind!r}{nearest(self.loss_kind, LOSSES)}"
            )
        if self.loss_kind == "cross_entropy" and self.data.dataset == "fields":
            raise ValueError(
                "loss_kind: expected 'mse' or 'l1' for fields, whose values are no probabilities, "
                "received 'cross_entropy'"
            )
        make_frame_sampling(self.sampling)  # Its values.
        if self.model.name == "encoder_forecaster" and self.sampling.name != NONE:
            raise ValueError(
                "sampling.name: expected 'none' for 'encoder_forecaster', which reads no frame "
                f"after the given ones, received {self.sampling.name!r}"
            )

    # ---- What a run keeps --------------------------------------------------------------------

    def describe_data(self, split: str) -> dict[str, Any]:
        """Returns what identifies the sequences of a split; there are no classes."""
        return {"class_names": [], **self.source(split).describe()}

    def describe_preprocessing(self) -> dict[str, Any]:
        """Returns the shape of a frame and the scaling of fields."""
        scaling = self.field_scaling()
        return {
            "frame_shape": list(self.frame_shape),
            "scaling": None if scaling is None else scaling.to_json(),
        }

    def save_assets(self, folder: Path) -> None:
        """Writes shape and scaling of the run's frames."""
        text = json.dumps(self.describe_preprocessing(), indent=1)
        write_text_atomically(folder / FRAMES_FILE, text)

    def load_assets(self, folder: Path) -> None:
        """Reads shape and scaling, so that a trained model is built without its data."""
        self._saved = json.loads((folder / FRAMES_FILE).read_text())
