r"""LRCN captioner: two LSTM layers, the upper of which reads the image at every step.

Donahue et al., "Long-term Recurrent Convolutional Networks for Visual Recognition and Description",
arXiv:1411.4389, section 5, LRCN-2f ("factored").

    python -m launch.train --config=experiments/lrcn_caption.py:flickr8k \
        --workdir=runs/lrcn_caption --config.data.root=…/flickr8k

Variants (``experiments/captioning/config.py``): ``flickr8k`` (default), ``flickr8k_sampled``
(scheduled sampling, starts from such a run), ``coco`` (Karpathy's split), ``moving_shapes``
(embedded videos, encoded by a CRNN), ``smoke`` (the same for a few seconds).

Paper: CIDEr-D 0.934 and BLEU-4 0.585 on COCO's server with 40 references (a secondary source), VGG
and sampling N = 100, T = 1.5. Ours: experiments/results/flickr8k.md.

Deviations: frozen EfficientNet-Lite0 instead of VGG; layers of 512 units instead of 1,000; AdamW
instead of SGD; beam search (``launch.caption --method=sample`` samples); early stopping on CIDEr.
"""

import dataclasses

from experiments.captioning.config import CaptionConfig, CaptionModelConfig, configure
from flaxnets.decoders.config import DecoderConfig


@dataclasses.dataclass
class LRCNCaptionConfig(CaptionConfig):
    """Hyper-parameters of LRCN-2f."""

    name: str = "LRCN-2f"
    model: CaptionModelConfig = dataclasses.field(
        default_factory=lambda: CaptionModelConfig(decoder=DecoderConfig("lrcn"))
    )


def get_config(variant: str | None = None) -> LRCNCaptionConfig:
    """Returns the configuration of a variant.

    Raises:
      ValueError: an unknown variant.
    """
    config: LRCNCaptionConfig = configure(LRCNCaptionConfig(), "lrcn_caption", variant)
    return config
