r"""TS-LSTM: segments of two-stream features.

Ma et al., "TS-LSTM and Temporal-Inception: Exploiting Spatiotemporal Dynamics for Activity
Recognition", arXiv:1703.10667, section 4.1.

    python -m data.flow /data/ucf101 --out=/data/ucf101_flow
    python -m launch.train --config=experiments/ts_lstm.py --workdir=runs/ts_lstm \
        --config.data.root=/data/ucf101 --config.data.flow=/data/ucf101_flow \
        --config.model.encoder.weights=rgb.pth --config.flow_weights=flow.pth

Expected (paper, mean of three splits): UCF101 94.1 %, HMDB51 69.0 %. Not reproduced: UCF101 and
two-stream networks fine-tuned on it were not available.

Settings of the paper, which are the defaults: the 2,048 features of a spatial and a temporal
ResNet-101 at 25 steps spread over the video, concatenated; the maximum over each of 3 segments; an
LSTM of 512 units, whose last state is classified.

Deviations:
  - The stream of flow is one image with the motion from a frame to the next, instead of a stack of
    10; its encoder has ImageNet's weights, unless ``flow_weights`` names fine-tuned ones.
  - No BatchNorm behind the pooling; dropout 0.5 before the LSTM and before the classifier.
  - Adam at 1e-4 in batches of 128; the text read for this project names neither.

Variants: ``smoke``: the embedded data, a few seconds; ``ut_interaction``: RGB and differences of
frames of UT-Interaction, encoded by EfficientNet-Lite0, 64 units (``adapt_to_ut_interaction``).
"""

import dataclasses

import flax.linen as nn

from experiments.classification.flow_clips import FlowClassification, FlowClipsConfig
from experiments.classification.video_clips import (
    adapt_to_ut_interaction,
    make_small,
    parse_variant,
)
from flaxnets.encoders.config import EncoderConfig
from flaxnets.heads.config import HeadConfig, make_head
from flaxnets.models.config import CRNNConfig
from flaxnets.models.temporal_segments import TemporalSegments
from flaxnets.recurrent.config import RecurrentConfig, make_recurrent
from flaxnets.training.config import OptimizerConfig


@dataclasses.dataclass
class TSLSTMConfig(FlowClassification):
    """Hyper-parameters of TS-LSTM; the defaults are the paper's."""

    name: str = "TS-LSTM"
    batch_size: int = 128
    num_steps: int = 20_000
    eval_every: int = 1_000
    num_segments: int = 3
    """N, segments of a video."""
    data: FlowClipsConfig = dataclasses.field(
        default_factory=lambda: FlowClipsConfig(
            streams=("rgb_whole", "flow_whole"), num_frames=25, stored_steps=25, test_clips=1
        )
    )
    model: CRNNConfig = dataclasses.field(
        default_factory=lambda: CRNNConfig(
            EncoderConfig("resnet101", frozen=True),
            RecurrentConfig("lstm", features=512),
            HeadConfig("last", dropout_rate=0.5),
            dropout_rate=0.5,
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-4)
    )

    def make_model(self) -> nn.Module:
        """Returns the pooling of segments, the LSTM and the classifier."""
        model = self.model
        return TemporalSegments(
            make_recurrent(model.recurrent, dtype=model.dtype),
            make_head(model.head, len(self.class_names), dtype=model.dtype),
            self.num_segments,
            model.dropout_rate,
        )


def get_config(variant: str | None = None) -> TSLSTMConfig:
    """Returns the configuration of a variant; None: the paper's.

    Raises:
      ValueError: an unknown variant.
    """
    names = parse_variant("ts_lstm", variant)
    config = TSLSTMConfig()
    if "smoke" in names:
        make_small(config, "rgb_whole", "difference_whole")
    if "ut_interaction" in names:
        adapt_to_ut_interaction(config, "rgb_whole", "difference_whole")
        config.model.recurrent.features = 64
    return config
