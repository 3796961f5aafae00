"""Show and Tell: the image is the first input of an LSTM that then writes its caption.

Vinyals et al., "Show and Tell: A Neural Image Caption Generator", arXiv:1411.4555.

    python -m launch.train --config=experiments/show_and_tell.py:flickr8k \
        --workdir=runs/show_and_tell --config.data.root=…/flickr8k

Variants: ``flickr8k`` (the default), ``flickr8k_sampled`` (goes on from such a run, see
``caption_variants.py``), ``coco`` (Karpathy's split), ``moving_shapes`` (the embedded videos,
encoded by a CRNN), ``smoke`` (those for seconds).

Paper: COCO BLEU-4 27.7, METEOR 23.7, CIDEr 85.5; Flickr8k BLEU-1 63 (from memory of the text).
Ours: README.

Deviations: EfficientNet-Lite0, frozen, instead of GoogLeNet, fine-tuned; mirror images and corners;
AdamW and an average of the parameters instead of SGD; beams of 5 instead of 20; one model instead
of an ensemble (``launch.caption`` decodes several at once); early stopping on CIDEr.
"""

import dataclasses

from experiments.captioning.config import CaptionConfig, CaptionModelConfig, configure
from flaxnets.decoders.config import DecoderConfig


@dataclasses.dataclass
class ShowAndTellConfig(CaptionConfig):
    """The hyper-parameters."""

    name: str = "Show and Tell"
    model: CaptionModelConfig = dataclasses.field(
        # The decoder embeds the mean over the regions itself.
        default_factory=lambda: CaptionModelConfig(
            decoder=DecoderConfig("show_and_tell"), region_features=0, region_dropout_rate=0.2
        )
    )


def get_config(variant: str | None = None) -> ShowAndTellConfig:
    """The configuration of a variant.

    Raises:
      ValueError: an unknown variant.
    """
    config = ShowAndTellConfig()
    config.optimizer.weight_decay = 0.1
    configured: ShowAndTellConfig = configure(config, "show_and_tell", variant)
    if variant in (None, "flickr8k"):
        configured.data.num_corners, configured.ema_decay = 2, 0.999
    if variant == "flickr8k_sampled":
        configured.num_steps, configured.optimizer.learning_rate = 4_800, 5e-4
        configured.eval_every = configured.checkpoint_every = 800
    return configured
