r"""GRU-RCN: convolutional GRUs on several endpoints of a VGG-16.

Ballas et al., "Delving Deeper into Convolutional Networks …", arXiv:1511.06432.

    python -m launch.train --config=experiments/gru_rcn.py --workdir=runs/gru_rcn \
        --config.data.root=/data/ucf101 --config.model.encoder.weights=vgg16.pth

Expected (paper, UCF101, RGB): VGG-16 78.0 %, GRU-RCN 79.9 %, stacked 78.3 %, bidirectional 80.7 %.
Not reproduced: neither UCF101 nor a VGG-16 fine-tuned on it was available.

Settings of the paper, which are the defaults: a frozen VGG-16; ConvGRUs of 3×3 kernels and 64, 128,
256, 256 feature maps on pool2 to pool5, a GRU of 512 units on fc7; each has a classifier on its
last state, averaged over positions, with dropout 0.7, and its own loss; the probabilities are
averaged. 10 frames spread over the video, batches of 64.

Deviations: Adam at 1e-4, as the text read for this project names no rate; classifiers of
``bidirectional`` read the mean of the states, as the backward direction's last has seen one frame.

Variants, joined by commas: ``stacked``; ``bidirectional``; ``smoke``, a few seconds;
``ut_interaction``: 16, 24 and 32 units on EfficientNet-Lite0, images of motion of 112².
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn

from experiments.classification.video_clips import (
    ClipClassification,
    ClipsConfig,
    adapt_to_ut_interaction,
    make_small,
    parse_variant,
)
from flaxnets.encoders.config import EncoderConfig, make_encoder
from flaxnets.heads.classifier import ClipClassifier
from flaxnets.heads.config import HeadConfig
from flaxnets.heads.pooling import pool_last, pool_mean
from flaxnets.models.config import CRNNConfig
from flaxnets.models.multi_level import MultiLevelCRNN
from flaxnets.recurrent.config import RecurrentConfig, make_recurrent
from flaxnets.training.config import OptimizerConfig

OWN = ("stacked", "bidirectional")


@dataclasses.dataclass
class GRURCNConfig(ClipClassification):
    """Hyper-parameters of GRU-RCN."""

    name: str = "GRU-RCN"
    batch_size: int = 64
    num_steps: int = 30_000
    eval_every: int = 2_500
    endpoints: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"pool2": 64, "pool3": 128, "pool4": 256, "pool5": 256, "fc7": 512}
    )
    """Endpoints of the encoder: feature maps, or units, of the recurrent layer of each."""
    stacked: bool = False
    """Each endpoint also reads the states of the one below."""
    data: ClipsConfig = dataclasses.field(
        default_factory=lambda: ClipsConfig("ucf101", num_frames=10, sampling="uniform", cache="")
    )
    model: CRNNConfig = dataclasses.field(
        default_factory=lambda: CRNNConfig(
            EncoderConfig("vgg16", frozen=True),
            RecurrentConfig("convgru"),
            HeadConfig("last", dropout_rate=0.7),
            chunk_frames=32,
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-4)
    )

    @property
    def levels(self) -> tuple[str, ...]:
        """Endpoints of the encoder that the network reads, from the lowest to the highest."""
        return tuple(n for n in make_encoder(self.model.encoder).level_names if n in self.endpoints)

    def make_model(self) -> nn.Module:
        """Returns a recurrent layer and a classifier for each endpoint."""
        model = self.model
        encoder: Any = make_encoder(model.encoder, dtype=model.dtype)
        vectors = encoder.level_names[encoder.level_names.index(encoder.maps_level) + 1 :]
        layers: dict[str, Any] = {}
        for name in self.levels:
            cell = "gru" if name in vectors else model.recurrent.cell
            own = dataclasses.replace(model.recurrent, cell=cell, features=self.endpoints[name])
            layers[name] = make_recurrent(own, dtype=model.dtype)
        pool = pool_mean if model.recurrent.bidirectional else pool_last
        rate, classes = model.head.dropout_rate, len(self.class_names)
        return MultiLevelCRNN(
            layers,
            functools.partial(ClipClassifier, classes, pool, dropout_rate=rate),
            encoder=encoder.clone(levels=self.levels) if self.encodes_frames else None,
            stacked=self.stacked,
            chunk_frames=model.chunk_frames,
            freeze_encoder=model.encoder.frozen,
        )


def get_config(variant: str | None = None) -> GRURCNConfig:
    """Returns the configuration of a variant; None: the paper's GRU-RCN.

    Raises:
      ValueError: an unknown variant.
    """
    names = parse_variant("gru_rcn", variant, OWN)
    title = ", ".join(["GRU-RCN", *(name for name in OWN if name in names)])
    config = GRURCNConfig(title, stacked="stacked" in names)
    config.model.recurrent.bidirectional = "bidirectional" in names
    if "smoke" in names:
        make_small(config)
        config.endpoints = {"stage_1": 4, "pooled": 8}
    if "ut_interaction" in names:
        adapt_to_ut_interaction(config, "difference_whole", size=112, steps=8)
        config.endpoints = {"stage_3": 16, "stage_5": 24, "pooled": 32}
    return config
