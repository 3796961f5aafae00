r"""LRCN: long-term recurrent convolutional networks for action recognition.

Donahue et al., arXiv:1411.4389 (v4, PAMI 2017), section 4, and its reference code.

    python -m launch.train --config=experiments/lrcn_ucf101.py --workdir=runs/lrcn \
        --config.data.root=/data/ucf101
    python -m launch.evaluate --workdir=runs/lrcn --split=test

Any encoder, cell and head by flags, here ResNet-18 from a file of weights, a ConvGRU on its feature
maps and attention over the steps:

    python -m launch.train --config=experiments/lrcn_ucf101.py --workdir=runs/convgru \
        --config.data.root=/data/ucf101 --config.model.encoder.name=resnet18 \
        --config.model.encoder.weights=resnet18.pth --config.model.recurrent.cell=convgru \
        --config.model.head.pool=attention

``--config.model.encoder.frozen=True`` encodes every frame of every video once, the centre crop and
its mirror image, and caches the features in ``data.cache``. Training then samples clips of both
views, and each clip at test has these 2 views instead of 10 crops. With ``--config.data.cache=``
the frozen encoder runs in every step instead, on random crops.

Expected (paper, v4, mean of the three splits, RGB): single frame 67.37 %, LRCN-fc6 68.20 %. Not yet
reproduced here: UCF101 was not available.

Settings of the paper, which are the defaults: clips of 16 frames at the native rate; frames resized
to 240×320, cropped to a square and mirrored at random; batches of 24 clips; an LSTM of 256 units
with dropout 0.9 before and 0.5 after it; logits and cross-entropy at every step; SGD with momentum
0.9, learning rate 0.001, divided by 10 every 10,000 of 30,000 steps, and 10 times as high for the
new layers; weight decay 0.005; gradients clipped at norm 5; at test the probabilities are averaged
over steps, clips and 10 crops.

Deviations:
  - EfficientNet-Lite0 (ImageNet) at 224² encodes the frames, instead of the CaffeNet/ZF hybrid's
    fc6 at 227². Its BatchNorm, which CaffeNet does not have, is fine-tuned: it normalises with the
    statistics of the batch and updates the running averages. To keep ImageNet's statistics, set
    ``--config.model.encoder.frozen_statistics=True``.
  - At test 8 clips are spread evenly over each video, instead of clips at a stride of 8 frames.
  - 3 of the 18 training groups of the fold are held out for validation, which selects the
    checkpoint.
  - The bias of the forget gate is initialised to 1.

Variants:
  - ``smoke``: a small encoder on the embedded data, a few seconds.
  - ``ut_interaction``: ``experiments/ut_interaction.py``, LRCN adapted to 60 clips.
"""

import dataclasses

from experiments.classification.video_clips import (
    VARIANTS,
    ClipClassification,
    make_small,
    step_schedule,
)
from flaxnets.configuration import nearest, runtime
from flaxnets.encoders.config import EncoderConfig
from flaxnets.heads.config import HeadConfig
from flaxnets.models.config import CRNNConfig
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.training.config import Config, OptimizerConfig


@dataclasses.dataclass
class LRCNConfig(ClipClassification):
    """Hyper-parameters of LRCN; the defaults are the paper's."""

    name: str = "LRCN"
    batch_size: int = 24
    num_steps: int = 30_000
    eval_every: int = 5_000
    checkpoint_every: int = runtime(1_000)
    model: CRNNConfig = dataclasses.field(
        default_factory=lambda: CRNNConfig(
            EncoderConfig("efficientnet_lite0", weights="imagenet"),
            RecurrentConfig("lstm", features=256),
            HeadConfig(dropout_rate=0.5),
            dropout_rate=0.9,
            # 10 crops of 8 clips are 1,280 frames.
            chunk_frames=32,
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(default_factory=step_schedule)


def get_config(variant: str | None = None) -> Config:
    """Returns the configuration of a variant; None: the paper's.

    Raises:
      ValueError: an unknown variant.
    """
    if variant is None:
        return LRCNConfig()
    if variant == "ut_interaction":
        from experiments import ut_interaction  # Its streams and networks are others.

        return ut_interaction.get_config()
    if variant != "smoke":
        raise ValueError(f"lrcn_ucf101:{variant}: no such variant{nearest(variant, VARIANTS)}")
    config = LRCNConfig()
    make_small(config)
    return config
