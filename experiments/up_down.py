"""Up-Down on a grid: one LSTM decides where to look, another what to say.

Anderson et al., "Bottom-Up and Top-Down Attention for Image Captioning and Visual Question
Answering", arXiv:1707.07998, section 3.2.

    python -m launch.train --config=experiments/up_down.py:flickr8k \
        --workdir=runs/up_down --config.data.root=…/flickr8k

Variants: ``flickr8k`` (the default), ``flickr8k_sampled`` (goes on from such a run, see
``caption_variants.py``), ``coco`` (Karpathy's split), ``moving_shapes`` (the embedded videos,
encoded by a CRNN), ``smoke`` (those for seconds). ``experiments/scst.py`` can go on from
such a run.

Paper, Karpathy's test split of COCO, boxes of Faster R-CNN: cross-entropy BLEU-4 36.2, CIDEr 113.5,
SPICE 20.3; self-critical 36.3 / 120.1 / 21.4 (from a comparison table). Ours: README.

Deviations: the 9×9 places of EfficientNet-Lite0's map instead of boxes; LSTMs and embedding of 512
instead of 1,000; AdamW instead of SGD with momentum; early stopping on CIDEr.
"""

import dataclasses

from experiments.captioning.config import CaptionConfig, CaptionModelConfig, configure
from flaxnets.decoders.config import DecoderConfig


@dataclasses.dataclass
class UpDownConfig(CaptionConfig):
    """The hyper-parameters."""

    name: str = "Up-Down"
    model: CaptionModelConfig = dataclasses.field(
        default_factory=lambda: CaptionModelConfig(decoder=DecoderConfig("up_down"))
    )


def get_config(variant: str | None = None) -> UpDownConfig:
    """The configuration of a variant.

    Raises:
      ValueError: an unknown variant.
    """
    config: UpDownConfig = configure(UpDownConfig(), "up_down", variant)
    return config
