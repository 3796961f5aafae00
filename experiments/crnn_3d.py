r"""A CRNN with a 3-D convolutional stem: short motions, then frames, then the whole clip.

The network of Stafylakis and Tzimiropoulos, "Combining Residual Networks with LSTMs for
Lipreading", arXiv:1703.04105, for videos of any kind: a 3-D convolution over 5 frames, a 2-D
network on the feature maps of each step, an LSTM in both directions.

    python -m launch.train --config=experiments/crnn_3d.py --workdir=runs/crnn_3d \
        --config.data.root=/data/ucf101
    … --config.model.recurrent.cell=convgru   keeps the feature maps in the recurrence

Expected: the paper reports 83.0 % of words on Lipreading in the Wild, which was not available; no
figure of this network on UCF101 is known. Its data are read in UCF101's layout.

Settings of the paper, which are the defaults: 29 frames; 64 kernels of 5×7×7, stride 2 over space,
3×3 max pooling; crops of 112² for the stem; two LSTM layers of 256 units in both directions; a
softmax at every step.

Deviations:
  - The 2-D network is the small CNN with 64, 128, 256 and 512 feature maps, one convolution each,
    instead of ResNet-34 without its stem.
  - LayerNorm in the stem (``flaxnets/models/stem_3d.py``); frames in colour.
  - AdamW with a cosine schedule.

Variants: ``smoke``: the embedded data, a few seconds; ``ut_interaction``: trained from random
values on images of motion of 56² of UT-Interaction, 8 kernels of 3×5×5 and a ConvGRU of 16.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from experiments.classification.video_clips import (
    ClipClassification,
    ClipsConfig,
    adapt_to_ut_interaction,
    make_small,
    parse_variant,
)
from flaxnets.encoders.config import EncoderConfig
from flaxnets.heads.config import HeadConfig
from flaxnets.models.config import CRNNConfig, make_crnn
from flaxnets.models.stem_3d import SpatioTemporalStem
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.training.config import OptimizerConfig


@dataclasses.dataclass
class CRNN3DConfig(ClipClassification):
    """Hyper-parameters of the CRNN with a 3-D stem."""

    name: str = "CRNN with a 3-D stem"
    batch_size: int = 32
    num_steps: int = 30_000
    eval_every: int = 2_500
    stem_features: int = 64
    """Kernels of the 3-D convolution."""
    stem_kernel: tuple[int, int, int] = (5, 7, 7)
    """Their frames, rows and columns."""
    data: ClipsConfig = dataclasses.field(
        default_factory=lambda: ClipsConfig(num_frames=29, crop_size=112, frame_size=(120, 160))
    )
    model: CRNNConfig = dataclasses.field(
        default_factory=lambda: CRNNConfig(
            EncoderConfig("small_cnn", features=(64, 128, 256, 512), strides=(1, 2, 2, 2)),
            RecurrentConfig("lstm", features=256, num_layers=2, bidirectional=True),
            HeadConfig(dropout_rate=0.5),
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            "adamw", schedule="cosine", warmup_steps=500, weight_decay=1e-2, clip_norm=5.0
        )
    )

    @property
    def pool(self) -> str:
        """Cached images keep their pixels."""
        return "none"

    def stream_encoder(self, stream: str, level: str = "") -> EncoderConfig:
        """Returns the identity: the network's stem reads the images of streams."""
        return EncoderConfig("downsampled_frames", input_size=self.data.crop_size, frozen=True)

    def make_model(self) -> nn.Module:
        """Returns the stem, and the CRNN on its feature maps."""
        network = make_crnn(self.model, len(self.class_names))
        frames, rows, columns = self.stem_kernel
        return SpatioTemporalStem(
            network, self.stem_features, (frames, rows, columns), dtype=self.model.dtype
        )

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the random variables."""
        return variables


def get_config(variant: str | None = None) -> CRNN3DConfig:
    """Returns the configuration of a variant; None: the paper's sizes.

    Raises:
      ValueError: an unknown variant.
    """
    names = parse_variant("crnn_3d", variant)
    config = CRNN3DConfig()
    if "smoke" in names:
        make_small(config)
        config.stem_features, config.model.recurrent.num_layers = 4, 1
    if "ut_interaction" in names:
        adapt_to_ut_interaction(config, "difference_whole", size=56)
        config.stem_features, config.stem_kernel = 8, (3, 5, 5)
        config.model.encoder = EncoderConfig("small_cnn", features=(16, 32), strides=(1, 2))
        config.model.recurrent = RecurrentConfig("convgru", features=16)
        config.model.dropout_rate = 0.2
    return config
