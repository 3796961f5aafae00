"""The convolutional-recurrent network for clips, and its two ablations."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.typing import Array


class CRNN(nn.Module):
    """Encoder over frames, recurrent layer over time, scores of each step (LRCN, 1411.4389).

    Without ``recurrent`` it is the CNN-only ablation (a frame average once the scores are
    averaged); with an encoder that only downsamples, the RNN-only one. Frames that a cached,
    frozen encoder has already seen go in as ``features``, without ``encoder``.

    Attributes:
      classifier: (B,T,F) to scores (B,T,K), called with ``train``.
      encoder: (N,H,W,C) to maps (N,h,w,D), called with ``mask`` (N,) and ``train``; None: the
        inputs are features already.
      recurrent: (B,T,D) to (B,T,F), called with ``lengths`` and ``train``; None: no time.
      pool: ``mean`` averages the maps over space, ``flatten`` keeps every place.
      dropout_rate: on the pooled features.
      chunk_frames: frames that the encoder sees at once where it does not train; 0: all. Bounds
        the memory of a test with many views, and a CPU's caches like few.
      freeze_encoder: the encoder runs as in evaluation and gets no gradient. Name it in
        ``optimizer.frozen`` too, or weight decay moves it.
    """

    classifier: nn.Module
    encoder: nn.Module | None = None
    recurrent: nn.Module | None = None
    pool: str = "mean"
    dropout_rate: float = 0.0
    chunk_frames: int = 0
    freeze_encoder: bool = False

    @nn.compact
    def __call__(
        self, frames: Array, lengths: Array, mask: Array | None = None, *, train: bool
    ) -> Array:
        """Scores of each step, (B,T,K) float32; those of padded steps mean nothing.

        Args:
          frames: (B,T,H,W,C) as the encoder takes them, or (B,T,D) or (B,T,h,w,D) features.
          lengths: (B,) int32, valid steps, 1..T.
          mask: (B,) bool, clips that count in batch statistics; None: all.
          train: whether dropout acts and batch statistics are those of the batch.

        Raises:
          ValueError: frames or lengths of another rank, or an unknown ``pool``.
        """
        if self.pool not in ("mean", "flatten"):
            raise ValueError(f"pool: expected 'mean' or 'flatten', received {self.pool!r}")
        ranks = (5,) if self.encoder is not None else (3, 5)
        if frames.ndim not in ranks:
            expected = " or ".join(map(str, ranks))
            raise ValueError(f"frames: expected rank {expected}, received shape {frames.shape}")
        b, t = frames.shape[:2]
        if lengths.shape != (b,):
            raise ValueError(f"lengths: expected shape {(b,)}, received {lengths.shape}")
        x = frames
        if self.encoder is not None:
            counts = jnp.arange(t) < lengths[:, None]  # (B,T)
            if mask is not None:
                counts &= mask[:, None]
            images = frames.reshape(b * t, *frames.shape[2:])
            if train and not self.freeze_encoder:
                maps = self.encoder(images, counts.reshape(-1), train=True)
            else:
                maps = _encode_in_chunks(self.encoder, images, self.chunk_frames)
            if self.freeze_encoder:
                maps = jax.lax.stop_gradient(maps)
            x = maps.reshape(b, t, *maps.shape[1:])  # (B,T,h,w,D)
        if x.ndim == 5:
            x = x.mean(axis=(2, 3)) if self.pool == "mean" else x.reshape(b, t, -1)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)  # (B,T,D)
        if self.recurrent is not None:
            x = self.recurrent(x, lengths, train=train)  # (B,T,F)
        return self.classifier(x, train=train)


def _encode_in_chunks(encoder: nn.Module, images: Array, chunk: int) -> Array:
    """(N,H,W,C) to maps (N,h,w,D) in evaluation, ``chunk`` images at a time; 0: all at once."""
    n = len(images)
    if not 0 < chunk < n or encoder.is_initializing():
        return encoder(images, None, train=False)
    images = jnp.pad(images, [(0, -n % chunk), *[(0, 0)] * (images.ndim - 1)])
    scan = nn.scan(
        lambda module, carry, x: (carry, module(x, None, train=False)),
        variable_broadcast=True,
        split_rngs={"params": False},
    )
    _, maps = scan(encoder, (), images.reshape(-1, chunk, *images.shape[1:]))
    return maps.reshape(-1, *maps.shape[2:])[:n]
