r"""Show, Attend and Tell: captions with soft or hard attention over the regions of an image.

Xu et al., "Show, Attend and Tell: Neural Image Caption Generation with Visual Attention",
arXiv:1502.03044.

    python -m launch.train --config=experiments/show_attend_tell.py:flickr8k \
        --workdir=runs/show_attend_tell --config.data.root=…/flickr8k

Variants (``experiments/captioning/config.py``): ``flickr8k`` (default), ``flickr8k_sampled``
(scheduled sampling, starts from such a run), ``coco`` (Karpathy's split), ``moving_shapes``
(embedded videos, encoded by a CRNN), ``smoke`` (the same for a few seconds).
``--config.model.decoder.name=hard_attention`` trains hard attention.

Paper, test split of Flickr8k, VGG-19, beam search: soft 67.0 / 44.8 / 29.9 / 19.5 BLEU-1…4 and
18.93 METEOR, hard 67.0 / 45.7 / 31.4 / 21.3 and 20.30 (from memory of the text). Ours:
experiments/results/flickr8k.md.

Deviations:
  - EfficientNet-Lite0's 9×9 feature maps of whole photographs instead of VGG-19's 14×14, followed
    by a Dense + ReLU layer of 512 units on each region.
  - Mirrored and corner crops of the training images; dropout of channels and regions; label
    smoothing.
  - AdamW and an average of the parameters instead of RMSProp; 512 units; early stopping on CIDEr
    instead of BLEU.
  - A vocabulary of the words that occur five times instead of the 10,000 most frequent.
  - Hard attention's REINFORCE term weighs 0.1, chosen on the validation images.
  - A doubly stochastic penalty of λ = 0.02 instead of 1. A caption has about twelve words for 81
    regions; with λ = 1 the attention became uniform (a perplexity of 75 of the 81 regions).
  - Those of the decoder's docstring.
"""

import dataclasses

from experiments.captioning.config import CaptionConfig, CaptionModelConfig, configure
from flaxnets.decoders.config import DecoderConfig


@dataclasses.dataclass
class ShowAttendTellConfig(CaptionConfig):
    """Hyper-parameters of Show, Attend and Tell."""

    name: str = "Show, Attend and Tell"
    model: CaptionModelConfig = dataclasses.field(
        default_factory=lambda: CaptionModelConfig(decoder=DecoderConfig("soft_attention"))
    )
    attention_penalty: float = 0.02
    """λ of the doubly stochastic attention."""


def get_config(variant: str | None = None) -> ShowAttendTellConfig:
    """Returns the configuration of a variant.

    Raises:
      ValueError: an unknown variant.
    """
    config: ShowAttendTellConfig = configure(ShowAttendTellConfig(), "show_attend_tell", variant)
    return config
