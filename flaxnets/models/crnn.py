"""Convolutional-recurrent network for clips, and its CNN-only and RNN-only ablations.

Shapes on the way::

    frames (B,T,H,W,C) uint8
      → encoder     (B·T,H,W,C) → feature maps (B,T,h,w,D) or vectors (B,T,D)
      → pool        "mean" (B,T,D), "flatten" (B,T,h·w·D) or "none" (B,T,h,w,D)
      → recurrent   (B,T,F), or (B,T,h,w,F) of a convolutional cell
      → classifier  logits (B,T,K) of the steps, or (B,1,K) of the clip
"""

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.models.frame_encoding import check_clips, encode_frames, take_only_endpoint
from flaxnets.typing import Array

POOLS = ("mean", "flatten", "none")


class CRNN(nn.Module):
    """Encoder over frames, recurrent layer over time, classifier (LRCN, 1411.4389, section 3).

    Variants by attribute: without ``recurrent`` the CNN-only ablation, a frame average once the
    logits are averaged; with ``DownsampledFrames`` as encoder the RNN-only one. Without ``encoder``
    the inputs are features, as cached from a frozen encoder. Without ``classifier`` the outputs are
    features, for ``StreamFusion``. No part needs a fixed T or fixed lengths.

    >>> import functools, jax
    >>> from flaxnets.encoders.small_cnn import SmallCNN
    >>> from flaxnets.heads.classifier import StepClassifier
    >>> from flaxnets.recurrent.cells import LSTMCell
    >>> from flaxnets.recurrent.layers import Recurrent
    >>> model = CRNN(
    ...     encoder=SmallCNN((8, 16), (2, 2)),
    ...     recurrent=Recurrent(functools.partial(LSTMCell, 32)),
    ...     classifier=StepClassifier(num_classes=5),
    ... )
    >>> video, lengths = jnp.zeros((2, 6, 16, 16, 3), jnp.uint8), jnp.array([6, 4])
    >>> init = functools.partial(model.init_with_output, train=False)
    >>> logits, variables = jax.eval_shape(init, jax.random.key(0), video, lengths)  # shapes only
    >>> logits.shape, str(logits.dtype)
    ((2, 6, 5), 'float32')
    >>> sorted(variables["params"])
    ['classifier', 'encoder', 'recurrent']

    Attributes:
      classifier: (B,T,F) to logits (B,T,K) or (B,1,K), called with ``lengths`` and ``train``;
        None: the features (B,T,F) or (B,T,h,w,F) are returned.
      encoder: (N,H,W,C) to feature maps (N,h,w,D) or vectors (N,D), or a dictionary of one
        endpoint, called with ``mask`` (N,) and ``train``; None: the inputs are features.
      recurrent: (B,T,D) to (B,T,F), or (B,T,h,w,D) to (B,T,h,w,F), called with ``lengths`` and
        ``train``; None: the identity.
      pool: of feature maps: ``mean`` averages over positions, ``flatten`` concatenates them,
        ``none`` keeps them for convolutional cells, whose outputs are averaged over positions
        before ``classifier``. Vectors pass as is.
      dropout_rate: on the pooled features.
      chunk_frames: frames encoded at a time where batch statistics do not change (see
        ``frame_encoding.py``); 0: all. It bounds the memory of fine-tuning and of multi-view tests,
        and small chunks fit into the caches of a CPU.
      freeze_encoder: whether the encoder runs as in evaluation and gets no gradient. Name it in
        ``optimizer.frozen`` too, or weight decay changes it.
      freeze_statistics: whether the encoder runs as in evaluation while its parameters train:
        fine-tuning with frozen BatchNorm.
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
        """Returns logits of the steps, (B,T,K) float32, or of the clips, (B,1,K).

        Logits of padded steps are meaningless.

        Args:
          frames: (B,T,H,W,C) uint8 in [0,255] or float as the encoder takes them; without
            ``encoder`` features (B,T,D) or (B,T,h,w,D) float.
          lengths: (B,) int32 in [0,T], valid steps.
          mask: (B,) bool, clips that count in batch statistics; None: all.
          train: whether dropout acts and batch statistics are those of the batch.

        Raises:
          ValueError: frames, lengths or mask of another rank or dtype, lengths outside [0,T], an
            unknown ``pool``, or an encoder that returns several endpoints.
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
            x = take_only_endpoint(maps, "encoder")  # (B,T,h,w,D) or (B,T,D)
        if x.ndim == 5 and self.pool != "none":
            x = x.mean(axis=(2, 3)) if self.pool == "mean" else x.reshape(b, t, -1)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        if self.recurrent is not None:
            x = self.recurrent(x, lengths, train=train)  # (B,T,F) or (B,T,h,w,F)
        if self.classifier is None:
            return x
        return self.classifier(average_over_space(x), lengths, train=train)


def average_over_space(features: Array) -> Array:
    """Averages (B,T,h,w,F) over positions to (B,T,F); vectors (B,T,F) pass as is."""
    if features.ndim == 3:
        return features
    return jnp.mean(features, axis=(2, 3))
