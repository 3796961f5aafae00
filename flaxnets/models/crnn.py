"""The convolutional-recurrent network for clips, and its two ablations."""

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.models.frame_encoding import check_clips, encode_frames, unwrap_level
from flaxnets.typing import Array

POOLS = ("mean", "flatten", "none")


class CRNN(nn.Module):
    """Encoder over frames, recurrent layer over time, scores (LRCN, 1411.4389).

    Without ``recurrent`` it is the CNN-only ablation (a frame average once the scores are
    averaged); with an encoder that only downsamples, the RNN-only one. Frames that a cached,
    frozen encoder has already seen go in as ``features``, without ``encoder``. Without
    ``classifier`` it is a stream for ``StreamFusion``.

    Attributes:
      classifier: (B,T,F) to scores (B,T,K) or (B,1,K), called with ``lengths`` and ``train``;
        None: the features themselves are returned.
      encoder: (N,H,W,C) to maps (N,h,w,D) or vectors (N,D), or a dict of one of them, called with
        ``mask`` (N,) and ``train``; None: the inputs are features already.
      recurrent: (B,T,D) to (B,T,F), or (B,T,h,w,D) to (B,T,h,w,F), called with ``lengths`` and
        ``train``; None: no time.
      pool: ``mean`` averages the maps over space, ``flatten`` keeps every place, ``none`` hands
        the maps on, for convolutional cells; what they give is averaged before ``classifier``.
      dropout_rate: on the pooled features.
      chunk_frames: frames that the encoder sees at once where its statistics do not change
        (``models/frame_encoding.py``); 0: all. Bounds the memory of fine-tuning and of a test
        with many views, and a CPU's caches like few.
      freeze_encoder: the encoder runs as in evaluation and gets no gradient. Name it in
        ``optimizer.frozen`` too, or weight decay moves it.
      freeze_statistics: the encoder runs as in evaluation, and its parameters train: fine-tuning
        with frozen BatchNorm, in chunks if asked for.
    """

    classifier: nn.Module | None
    encoder: nn.Module | None = None
    recurrent: nn.Module | None = None
    pool: str = "mean"
    dropout_rate: float = 0.0
    chunk_frames: int = 0
    freeze_encoder: bool = False
    freeze_statistics: bool = False

    @nn.compact
    def __call__(
        self, frames: Array, lengths: Array, mask: Array | None = None, *, train: bool
    ) -> Array:
        """Scores of each step, (B,T,K) float32, or of the clip, (B,1,K).

        Those of padded steps mean nothing.

        Args:
          frames: (B,T,H,W,C) uint8 or float as the encoder takes them, or (B,T,D) or (B,T,h,w,D)
            features.
          lengths: (B,) int32 in [0,T], valid steps.
          mask: (B,) bool, clips that count in batch statistics; None: all.
          train: whether dropout acts and batch statistics are those of the batch.

        Raises:
          ValueError: frames, lengths or mask of another rank or dtype, lengths outside [0,T], an
            unknown ``pool``, or an encoder of several levels.
        """
        if self.pool not in POOLS:
            raise ValueError(f"pool: expected 'mean', 'flatten' or 'none', received {self.pool!r}")
        ranks = (5,) if self.encoder is not None else (3, 5)
        if frames.ndim not in ranks:
            expected = " or ".join(map(str, ranks))
            raise ValueError(f"frames: expected rank {expected}, received shape {frames.shape}")
        check_clips(frames, lengths, mask)
        b, t = frames.shape[:2]
        x = frames
        if self.encoder is not None:
            maps = encode_frames(
                self.encoder,
                frames,
                lengths,
                mask,
                train=train,
                chunk_frames=self.chunk_frames,
                freeze_encoder=self.freeze_encoder,
                freeze_statistics=self.freeze_statistics,
            )
            x = unwrap_level(maps, "encoder")  # (B,T,h,w,D) or (B,T,D)
        if x.ndim == 5 and self.pool != "none":
            x = x.mean(axis=(2, 3)) if self.pool == "mean" else x.reshape(b, t, -1)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        if self.recurrent is not None:
            x = self.recurrent(x, lengths, train=train)  # (B,T,F) or (B,T,h,w,F)
        if self.classifier is None:
            return x
        return self.classifier(average_over_space(x), lengths, train=train)


def average_over_space(features: Array) -> Array:
    """(B,T,h,w,F) to (B,T,F), in float32 and back; vectors pass as they are."""
    if features.ndim == 3:
        return features
    return jnp.mean(features, axis=(2, 3))
