"""Decoder in the form of its peers, and random batches, for the captioning benchmarks."""

from functools import partial

import numpy as np

from flaxnets.decoders.decoder import CaptionDecoder
from flaxnets.decoders.hypotheses import EOS, PAD, UNK
from flaxnets.decoders.show_attend_tell import SoftAttention
from flaxnets.recurrent.cells import LSTMCell

OURS = "flaxnets"


def make_decoder(
    vocabulary_size: int, features: int = 512, dropout_rate: float = 0.5
) -> CaptionDecoder:
    """Returns soft attention in the form of its PyTorch peer."""
    return SoftAttention(
        vocabulary_size=vocabulary_size,
        embed_features=features,
        attention_features=features,
        make_cell=partial(LSTMCell, features),
        dropout_rate=dropout_rate,
        gate="vector",
        deep_output=False,
    )


def draw_batch(
    batch_size: int, num_regions: int, width: int, vocabulary_size: int
) -> dict[str, np.ndarray]:
    """Returns a random ``CaptionBatch`` of one caption for each image, with float16 features.

    Captions have at least 3 words, 10.8 on average with a standard deviation of 3.7, as Flickr8k's.
    """
    rng = np.random.default_rng(0)
    lengths = 3 + rng.negative_binomial(10, 10 / 17.8, batch_size) + 1  # The end token.
    positions = np.arange(lengths.max())
    tokens = rng.integers(UNK + 1, vocabulary_size, (batch_size, lengths.max()))
    tokens = np.where(positions == lengths[:, None] - 1, EOS, tokens)
    tokens = np.where(positions < lengths[:, None], tokens, PAD)
    return {
        "features": rng.normal(size=(batch_size, num_regions, width)).astype(np.float16),
        "tokens": tokens[:, None].astype(np.int32),
        "token_lengths": lengths[:, None].astype(np.int32),
        "mask": np.ones(batch_size, bool),
        "index": np.arange(batch_size, dtype=np.int32),
    }
