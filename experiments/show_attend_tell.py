"""Show, Attend and Tell: captions by soft or hard attention to the places of an image.

Xu et al., "Show, Attend and Tell: Neural Image Caption Generation with Visual Attention",
arXiv:1502.03044.

    python -m launch.train --config=experiments/show_attend_tell.py:flickr8k \
        --workdir=runs/show_attend_tell --config.data.root=…/flickr8k

Variants: ``flickr8k`` (the default), ``flickr8k_sampled`` (goes on from such a run, see
``caption_variants.py``), ``coco`` (Karpathy's split), ``moving_shapes`` (the embedded videos,
encoded by a CRNN), ``smoke`` (those for seconds).
``--config.model.decoder.name=hard_attention`` trains hard attention.

Paper, test split of Flickr8k, VGG-19, beam: soft 67.0 / 44.8 / 29.9 / 19.5 BLEU-1…4 and 18.93
METEOR, hard 67.0 / 45.7 / 31.4 / 21.3 and 20.30 (from memory of the text). Ours: README.

Deviations: EfficientNet-Lite0's 9×9 maps of whole photographs instead of VGG-19's 14×14, their
channels through a layer of 512 rectifiers; mirror images and corners; dropout of channels and
places; AdamW and an average of the parameters instead of RMSProp; 512 units; words that occur five
times instead of the 10,000 most frequent; label smoothing; early stopping on CIDEr, not BLEU; a
doubly stochastic penalty of λ = 0.02 instead of 1: a caption has a dozen words for 81 places, and
with 1 the attention came out even (a perplexity of 75 places of 81); those of the decoder's
docstring.
"""

import dataclasses

from experiments.captioning.config import CaptionConfig, CaptionModelConfig, configure
from flaxnets.decoders.config import DecoderConfig


@dataclasses.dataclass
class ShowAttendTellConfig(CaptionConfig):
    """The hyper-parameters."""

    name: str = "Show, Attend and Tell"
    model: CaptionModelConfig = dataclasses.field(
        default_factory=lambda: CaptionModelConfig(decoder=DecoderConfig("soft_attention"))
    )
    attention_penalty: float = 0.02


def get_config(variant: str | None = None) -> ShowAttendTellConfig:
    """The configuration of a variant.

    Raises:
      ValueError: an unknown variant.
    """
    config: ShowAttendTellConfig = configure(ShowAttendTellConfig(), "show_attend_tell", variant)
    return config
