"""Configuration that two-stream papers share: clips, or streams, of optical flow beside RGB."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data.video.clips import VideoSource
from data.video.flow import IMAGES, FlowImages, FlowTransform, make_reader, mirror_flow
from data.video.streams import STREAMS, StreamSource
from data.video.transforms import SpatialTransform
from experiments.classification.video_clips import ClipClassification, ClipsConfig
from flaxnets.configuration import nearest, path_field
from flaxnets.encoders.config import EncoderConfig
from flaxnets.inference.trained_model import read_predictions
from flaxnets.training.workdir import Workdir

FLOW = "flow_whole"
"""Stream of images of optical flow."""


@dataclasses.dataclass
class FlowClipsConfig(ClipsConfig):
    """Location of the videos and of their optical flow, and the clips cut from them."""

    images: str = "rgb"
    """Of clips: ``rgb``, frames, or ``flow``, images of optical flow."""
    flow: str = path_field(runtime=True)
    """Folder of the optical flow, published or of ``python -m data.flow`` (``data/video/flow.py``);
    flow that it lacks is computed."""


class FlowStream(StreamSource):
    """Images of optical flow of whole videos; mirrored ones have the other horizontal direction."""

    def _images(self, video: Iterable[np.ndarray], num_frames: int) -> np.ndarray:
        views = super()._images(video, num_frames)
        if self.mirror:
            views[1::2] = np.stack([mirror_flow(view) for view in views[::2]])
        return views


@dataclasses.dataclass
class FlowClassification(ClipClassification):
    """Action recognition on frames and optical flow of UCF101, or data in its format."""

    stream_names: ClassVar[tuple[str, ...]] = (*STREAMS, FLOW)

    flow_weights: str = path_field()
    """File of weights of the encoder of the stream ``flow_whole``; empty: those of
    ``model.encoder``."""
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
        if self.embedded and (data.images == "flow" or FLOW in data.streams):
            raise ValueError(
                "data.images: expected rgb and no stream flow_whole with data.dataset="
                f"{data.dataset}, which has no optical flow; choose difference_whole"
            )
        if not self.embedded and not data.flow and (data.images == "flow" or FLOW in data.streams):
            raise ValueError(
                "data.flow: expected the folder of the optical flow; give --config.data.flow=FOLDER"
            )

    def stream_encoder(self, stream: str, level: str = "") -> EncoderConfig:
        """Returns the frozen encoder of a stream, flow's with weights of its own."""
        encoder = super().stream_encoder(stream, level)
        if stream == FLOW and self.flow_weights:
            return dataclasses.replace(encoder, weights=self.flow_weights)
        return encoder

    def make_source(
        self, paths: tuple[str, ...], labels: tuple[int, ...] | None = None
    ) -> VideoSource:
        """Returns the videos, read as frames or as flow."""
        return VideoSource(paths, labels, self._reader(self.data.images))

    def make_stream(self, videos: VideoSource, stream: str) -> StreamSource:
        """Returns the images of a stream."""
        if stream != FLOW:
            return super().make_stream(videos, stream)
        data = self.data
        source = VideoSource(videos.paths, videos.labels, self._reader("flow"))
        return FlowStream(
            source, ("rgb_whole",), data.stored_steps, size=data.crop_size, mirror=data.flip
        )

    def digest_videos(self, source: VideoSource) -> list[str]:
        """Returns digests of the files of the frames, or of the flow."""
        if isinstance(source.reader, FlowImages):
            return [source.reader.digest(path) for path in source.paths]
        return super().digest_videos(source)

    def _reader(self, images: str) -> Any:
        return make_reader(images, videos=self.data.root, flow=self.data.flow)


def fuse_runs(workdirs: Sequence[str | Path], weights: Sequence[float]) -> float:
    """Returns the accuracy of weighted test predictions of several runs, in [0,1].

    Args:
      workdirs: runs with predictions of ``launch.evaluate --split=test`` on the same videos.
      weights: of each run's probabilities.

    Raises:
      ValueError: runs on other videos.
      FileNotFoundError: a run without predictions.
    """
    runs = [read_predictions(Workdir(workdir).predictions("test")) for workdir in workdirs]
    labels = [[(row["index"], row["label"]) for row in rows] for rows in runs]
    if any(each != labels[0] for each in labels):
        raise ValueError(
            f"workdirs: expected predictions of the same videos, received {workdirs}, whose test "
            "splits differ"
        )
    probabilities = [np.array([row["probabilities"] for row in rows]) for rows in runs]
    fused = np.einsum("r,rnk->nk", np.asarray(weights), np.stack(probabilities))
    return float(np.mean(fused.argmax(1) == [label for _, label in labels[0]]))
