r"""Show and Tell: an LSTM whose first input is the image and whose next inputs are the words.

Vinyals et al., "Show and Tell: A Neural Image Caption Generator", arXiv:1411.4555.

    python -m launch.train --config=experiments/show_and_tell.py:flickr8k \
        --workdir=runs/show_and_tell --config.data.root=…/flickr8k

Variants (``experiments/captioning/config.py``): ``flickr8k`` (default), ``flickr8k_sampled``
(scheduled sampling, starts from such a run), ``coco`` (Karpathy's split), ``moving_shapes``
(embedded videos, encoded by a CRNN), ``smoke`` (the same for a few seconds).

Paper: COCO BLEU-4 27.7, METEOR 23.7, CIDEr 85.5; Flickr8k BLEU-1 63 (from memory of the text).
Ours: experiments/results/flickr8k.md.

Deviations: frozen EfficientNet-Lite0 instead of fine-tuned GoogLeNet; mirrored and corner crops of
the training images; AdamW and an average of the parameters instead of SGD; beams of 5 instead of
20; one model instead of an ensemble (``launch.caption`` can decode with several); early stopping on
CIDEr.
"""

import dataclasses

from experiments.captioning.config import CaptionConfig, CaptionModelConfig, configure
from flaxnets.decoders.config import DecoderConfig


@dataclasses.dataclass
class ShowAndTellConfig(CaptionConfig):
    """Hyper-parameters of Show and Tell."""

    name: str = "Show and Tell"
    model: CaptionModelConfig = dataclasses.field(
        # The decoder projects the mean over the regions itself.
        default_factory=lambda: CaptionModelConfig(
            decoder=DecoderConfig("show_and_tell"), region_features=0, region_dropout_rate=0.2
        )
    )


def get_config(variant: str | None = None) -> ShowAndTellConfig:
    """Returns the configuration of a variant.

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
