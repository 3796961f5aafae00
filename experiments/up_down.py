r"""Up-Down: an attention LSTM queries the image regions, a language LSTM predicts the words.

Anderson et al., "Bottom-Up and Top-Down Attention for Image Captioning and Visual Question
Answering", arXiv:1707.07998, section 3.2.

    python -m launch.train --config=experiments/up_down.py:flickr8k \
        --workdir=runs/up_down --config.data.root=…/flickr8k

Variants (``experiments/captioning/config.py``): ``flickr8k`` (default), ``flickr8k_sampled``
(scheduled sampling, starts from such a run), ``coco`` (Karpathy's split), ``moving_shapes``
(embedded videos, encoded by a CRNN), ``smoke`` (the same for a few seconds).
``experiments/scst.py`` can start from a run of this file.

Paper, Karpathy's test split of COCO, regions of Faster R-CNN: cross-entropy BLEU-4 36.2, CIDEr
113.5, SPICE 20.3; self-critical 36.3 / 120.1 / 21.4 (from a comparison table). Ours:
experiments/results/flickr8k.md.

Deviations: the 9×9 regions of EfficientNet-Lite0's feature map instead of detected objects; LSTMs
and embeddings of 512 units instead of 1,000; AdamW instead of SGD with momentum; early stopping on
CIDEr.
"""

import dataclasses

from experiments.captioning.config import CaptionConfig, CaptionModelConfig, configure
from flaxnets.decoders.config import DecoderConfig


@dataclasses.dataclass
class UpDownConfig(CaptionConfig):
    """Hyper-parameters of Up-Down."""

    name: str = "Up-Down"
    model: CaptionModelConfig = dataclasses.field(
        default_factory=lambda: CaptionModelConfig(decoder=DecoderConfig("up_down"))
    )


def get_config(variant: str | None = None) -> UpDownConfig:
    """Returns the configuration of a variant.

    Raises:
      ValueError: an unknown variant.
    """
    config: UpDownConfig = configure(UpDownConfig(), "up_down", variant)
    return config
