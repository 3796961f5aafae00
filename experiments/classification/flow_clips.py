"""Configuration that two-stream papers share: clips, or streams, of optical flow beside RGB."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from data.video.clips import VideoReader, VideoSource
from data.video.flow import IMAGES, FlowTransform, make_reader
from data.video.streams import FLOW_STREAMS, STREAMS
from data.video.transforms import SpatialTransform
from experiments.classification.video_clips import ClipClassification, ClipsConfig
from flaxnets.configuration import nearest, path_field
from flaxnets.encoders.config import EncoderConfig
from flaxnets.inference.trained_model import read_predictions
from flaxnets.training.workdir import Workdir


@dataclasses.dataclass
class FlowClipsConfig(ClipsConfig):
    """Location of the videos and of their optical flow, and the clips cut from them."""

    images: str = "rgb"
    """Of clips: ``rgb``, frames, or ``flow``, images of optical flow."""
    flow: str = path_field(runtime=True)
    """Folder of the optical flow, published or of ``python -m data.flow`` (``data/video/flow.py``);
    flow that it lacks is computed."""


@dataclasses.dataclass
class FlowClassification(ClipClassification):
    """Action recognition on frames and optical flow of UCF101, or data in its format."""

    stream_names: ClassVar[tuple[str, ...]] = (*STREAMS, *FLOW_STREAMS)

    flow_weights: str = path_field()
    """File of weights of the encoder of streams of flow; empty: those of ``model.encoder``."""
    data: FlowClipsConfig = dataclasses.field(default_factory=FlowClipsConfig)

    @property
    def transform_type(self) -> type[SpatialTransform]:  # type: ignore[override]
        """The crop of frames or of flow."""
        return FlowTransform if self.data.images == "flow" else SpatialTransform

    def validate(self) -> None:
        """Checks the values as ``ClipClassification.validate``, and that there is flow to read."""
        super().validate()
        data = self.data
        if data.images not in IMAGES:
            raise ValueError(f"data.images: unknown {data.images!r}{nearest(data.images, IMAGES)}")
        if data.images != "flow" and not set(data.streams) & set(FLOW_STREAMS):
            return
        if self.embedded:
            raise ValueError(
                "data.images: expected rgb and no stream of flow with data.dataset="
                f"{data.dataset}, which has no optical flow; choose difference_whole"
            )
        if not data.flow:
            raise ValueError(
                "data.flow: expected the folder of the optical flow; give --config.data.flow=FOLDER"
            )

    def stream_encoder(self, stream: str, level: str = "") -> EncoderConfig:
        """Returns the frozen encoder of a stream, flow's with weights of its own."""
        encoder = super().stream_encoder(stream, level)
        if stream in FLOW_STREAMS and self.flow_weights:
            return dataclasses.replace(encoder, weights=self.flow_weights)
        return encoder

    def make_source(
        self, paths: tuple[str, ...], labels: tuple[int, ...] | None = None
    ) -> VideoSource:
        """Returns the videos, read as frames or as flow."""
        return VideoSource(paths, labels, self._reader(self.data.images))

    def read_flow(self, stream: str) -> VideoReader | None:
        """Returns the reader of the optical flow of a stream; None for other streams."""
        return self._reader("flow") if stream in FLOW_STREAMS else None

    def _reader(self, images: str) -> VideoReader:
        return make_reader(images, videos=self.data.root, flow=self.data.flow)


def fuse_runs(workdirs: Sequence[str | Path], weights: Sequence[float]) -> float:
    """Returns the accuracy of weighted test predictions of several runs, in [0,1].

    Args:
      workdirs: runs with predictions of ``launch.evaluate --split=test`` on the same videos.
      weights: of each run's probabilities.

    Raises:
      ValueError: runs on other videos, or of another task.
      FileNotFoundError: a run without predictions.
    """
    files = [Workdir(workdir).predictions("test") for workdir in workdirs]
    for workdir, file in zip(workdirs, files, strict=True):
        if not file.is_file():
            raise FileNotFoundError(
                f"{workdir}: expected a run with predictions of the test split, received none; "
                f"first run: python -m launch.evaluate --workdir={workdir} --split=test"
            )
    runs = [read_predictions(file) for file in files]
    for workdir, rows in zip(workdirs, runs, strict=True):
        if not rows or any("probabilities" not in row or "label" not in row for row in rows):
            raise ValueError(f"{workdir}: expected predictions of a classifier, received others")
    labels = [[(row["index"], row["label"]) for row in rows] for rows in runs]
    if any(each != labels[0] for each in labels):
        raise ValueError(
            f"workdirs: expected predictions of the same videos, received {workdirs}, whose test "
            "splits differ"
        )
    probabilities = [np.array([row["probabilities"] for row in rows]) for rows in runs]
    fused = np.einsum("r,rnk->nk", np.asarray(weights), np.stack(probabilities))
    return float(np.mean(fused.argmax(1) == [label for _, label in labels[0]]))
