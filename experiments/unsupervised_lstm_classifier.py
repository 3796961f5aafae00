r"""The classifier of "Unsupervised Learning of Video Representations using LSTMs".

Srivastava et al., arXiv:1502.04681, section 3.5.

    python -m launch.train --config=experiments/unsupervised_lstm_classifier.py \
        --workdir=runs/unsupervised --config.data.root=/data/ucf101 \
        --config.model.encoder.weights=vgg16.pth

Expected (paper, UCF101, RGB): 75.8 % with an LSTM initialised from the composite autoencoder and
predictor of percepts; 84.3 % with flow; HMDB51 44.0 %. Not reproduced: the data were not available.

Settings of the paper, which are the defaults: percepts of a frozen network, the 4,096 rectified
units of VGG-16's fc6; one LSTM of 2,048 units and a softmax at every step on clips of 16 frames;
at test the probabilities are averaged over the steps and over clips of the video.

Deviations:
  - The LSTM starts from random values. An autoencoder or predictor of percepts is no part of this
    repository, so nothing could initialise it; ``--config.initialize_from`` takes a run of this
    experiment on other data.
  - At test 8 clips are spread evenly over each video, instead of clips at a stride of 8 frames.
  - Adam at 1e-4 with dropout 0.5 on the percepts and the states; the text read for this project
    names neither.
  - Centre crops and their mirror images, whose percepts are cached.

Variants: ``smoke``: the embedded data, a few seconds; ``ut_interaction``: 64 units on images of
motion of UT-Interaction, encoded by EfficientNet-Lite0 (``adapt_to_ut_interaction``).
"""

import dataclasses

from experiments.classification.video_clips import (
    ClipClassification,
    adapt_to_ut_interaction,
    make_small,
    parse_variant,
)
from flaxnets.encoders.config import EncoderConfig
from flaxnets.heads.config import HeadConfig
from flaxnets.models.config import CRNNConfig
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.training.config import OptimizerConfig


@dataclasses.dataclass
class UnsupervisedLSTMConfig(ClipClassification):
    """Hyper-parameters of the LSTM classifier of percepts."""

    name: str = "LSTM on percepts"
    batch_size: int = 128
    num_steps: int = 20_000
    eval_every: int = 2_000
    model: CRNNConfig = dataclasses.field(
        default_factory=lambda: CRNNConfig(
            EncoderConfig("vgg16", level="fc6", frozen=True),
            RecurrentConfig("lstm", features=2048),
            HeadConfig(dropout_rate=0.5),
            dropout_rate=0.5,
            chunk_frames=32,
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-4)
    )


def get_config(variant: str | None = None) -> UnsupervisedLSTMConfig:
    """Returns the configuration of a variant; None: the paper's.

    Raises:
      ValueError: an unknown variant.
    """
    names = parse_variant("unsupervised_lstm_classifier", variant)
    config = UnsupervisedLSTMConfig()
    if "smoke" in names:
        make_small(config)
    if "ut_interaction" in names:
        adapt_to_ut_interaction(config, "difference_whole")
        config.model.recurrent.features = 64
    return config
