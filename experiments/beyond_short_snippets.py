r"""Beyond Short Snippets: deep LSTMs and conv pooling over whole videos.

Ng et al., "Beyond Short Snippets: Deep Networks for Video Classification", arXiv:1503.08909.

    python -m launch.train --config=experiments/beyond_short_snippets.py --workdir=runs/bss \
        --config.data.root=/data/ucf101 --config.model.encoder.weights=googlenet.pth
    python -m launch.train --config=experiments/beyond_short_snippets.py:conv_pooling …

Expected (paper, mean of UCF101's three splits): LSTM 88.6 % with flow, 82.6 % without; conv pooling
of 120 frames 88.2 % with flow; Sports-1M Hit@1 73.1 %. Not reproduced: neither data set was
available, and the paper trains on Sports-1M before UCF101.

Settings of the paper, which are the defaults: GoogLeNet on frames at 1 frame/s, 30 of them; five
LSTM layers of 512 units with a softmax at every step; the loss of step t weighted by a gain that
grows linearly in time, and the probabilities as well (``VideoClassification``, ``linear_gain``).
``conv_pooling``: the maximum over 120 frames of the last feature maps at each position, two layers
of 4,096 units, one softmax.

Deviations:
  - From ImageNet's weights straight to UCF101, without Sports-1M and without the stream of flow.
  - SGD by LRCN's schedule instead of Downpour SGD, for which the paper names its rates.
  - At test 1 clip and 10 crops of it.
  - The bias of the forget gates is initialised to 1.

Variants, joined by commas: ``conv_pooling``; ``smoke``: the embedded data, a few seconds;
``ut_interaction``: two layers of 64 on images of motion of UT-Interaction, or conv pooling of maps
of 112² images with two layers of 64 (``adapt_to_ut_interaction``).
"""

import dataclasses

import flax.linen as nn

from experiments.classification.video_clips import (
    ClipClassification,
    ClipsConfig,
    adapt_to_ut_interaction,
    make_small,
    parse_variant,
    step_schedule,
)
from flaxnets.encoders.config import EncoderConfig
from flaxnets.heads.classifier import ClipClassifier
from flaxnets.heads.config import PER_STEP, HeadConfig
from flaxnets.heads.pooling import pool_max
from flaxnets.models.config import CRNNConfig
from flaxnets.recurrent.config import NONE, RecurrentConfig
from flaxnets.training.config import OptimizerConfig


@dataclasses.dataclass
class BeyondShortSnippetsConfig(ClipClassification):
    """Hyper-parameters of Beyond Short Snippets; the defaults are the paper's LSTM."""

    name: str = "Beyond Short Snippets, LSTM"
    batch_size: int = 24
    num_steps: int = 30_000
    eval_every: int = 5_000
    hidden_features: tuple[int, ...] = (4096, 4096)
    """Conv pooling only: widths of the layers after the maximum over time."""
    data: ClipsConfig = dataclasses.field(
        default_factory=lambda: ClipsConfig(num_frames=30, rate=1.0, test_clips=1)
    )
    model: CRNNConfig = dataclasses.field(
        default_factory=lambda: CRNNConfig(
            EncoderConfig("googlenet", frozen_statistics=True),
            RecurrentConfig("lstm", features=512, num_layers=5),
            HeadConfig(),
            chunk_frames=32,
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(default_factory=step_schedule)

    @property
    def loss_kind(self) -> str:
        """``linear_gain`` of the LSTM, ``clip`` of conv pooling."""
        return "linear_gain" if self.model.head.pool == PER_STEP else "clip"

    def make_model(self) -> nn.Module:
        """Returns GoogLeNet and the LSTM, or the pooling with its fully connected layers."""
        network = super().make_model()
        if self.model.head.pool == PER_STEP:
            return network
        head = ClipClassifier(
            len(self.class_names),
            pool_max,
            hidden_features=tuple(self.hidden_features),
            dropout_rate=self.model.head.dropout_rate,
            dtype=self.model.dtype,
        )
        return network.clone(classifier=head)


def get_config(variant: str | None = None) -> BeyondShortSnippetsConfig:
    """Returns the configuration of a variant; None: the paper's LSTM.

    Raises:
      ValueError: an unknown variant.
    """
    names = parse_variant("beyond_short_snippets", variant, ("conv_pooling",))
    config = BeyondShortSnippetsConfig()
    pools = "conv_pooling" in names
    if pools:
        config.name, config.data.num_frames = "Beyond Short Snippets, conv pooling", 120
        config.model.recurrent.cell, config.model.spatial_pool = NONE, "flatten"
        config.model.head.pool = "max"
    if "smoke" in names:
        make_small(config)
        config.model.recurrent.num_layers, config.hidden_features = 2, (16,)
    if "ut_interaction" in names:
        adapt_to_ut_interaction(config, "difference_whole", size=112 if pools else 224)
        config.model.recurrent.features, config.model.recurrent.num_layers = 64, 2
        config.hidden_features = (64, 64)
        if pools:
            # Maps have 20,480 numbers, none negative: at the LSTM's rate, or with dropout between
            # layers of 64, the units die and the training loss stays at ln 6.
            config.optimizer.learning_rate, config.model.head.dropout_rate = 1e-4, 0.0
    return config
