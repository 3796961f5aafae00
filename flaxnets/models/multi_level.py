"""Recurrent layers on several levels of one encoder, a classifier each (GRU-RCN)."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers.pooling import max_pool
from flaxnets.models.crnn import average_over_space
from flaxnets.models.frame_encoding import check_clips, check_names, encode_frames
from flaxnets.typing import Array


class MultiLevelCRNN(nn.Module):
    """Every level of the encoder sees time by itself (Ballas et al., 1511.06432, GRU-RCN).

    Low levels keep where things are and so see finer motion, high ones know what they are. Each
    level has a recurrent layer, convolutional on maps and dense on vectors, and a classifier on
    its outputs averaged over space; the task trains each on its own loss and averages their
    probabilities. The paper's network, for K classes, with dropout 0.7 and one decision from the
    last step:

        MultiLevelCRNN(
            encoder=VGG(levels=("pool2", "pool3", "pool4", "pool5", "fc7")),
            recurrent={
                "pool2": Recurrent(partial(ConvGRUCell, 64)),
                ...
                "fc7": Recurrent(partial(GRUCell, 512)),
            },
            make_classifier=partial(ClipClassifier, K, pool_last, dropout_rate=0.7),
        )

    ``stacked`` is its Stacked GRU-RCN: level l also reads the outputs of level l-1, max-pooled to
    its size, beside its own maps. A convolution of both side by side is the sum of one of each, as
    in the paper's equations.

    Modules are one set of parameters each, as everywhere in Linen: levels that are given one
    instance share it, of a recurrent layer as of an ``AttentionPooling`` in ``make_classifier``.

    Deviations: the paper trains the encoder's levels as one frozen feature extractor; here that is
    ``freeze_encoder``'s choice. Stacked, what is read of the level below and the maps share one
    initialisation by their joint width.

    Attributes:
      recurrent: a layer for each level, from the lowest to the highest; called with ``lengths``
        and ``train``.
      make_classifier: constructs a level's classifier, called with ``name``.
      encoder: (N,H,W,C) to a dict of maps (N,h,w,D) or vectors (N,D) by level; None: the inputs are
        such a dict.
      stacked: whether a level also reads the one before it.
      chunk_frames: as ``CRNN``'s, as are the next two.
      freeze_encoder: no gradient, and statistics as they are.
      freeze_statistics: gradients, and statistics as they are.
    """

    recurrent: Mapping[str, nn.Module]
    make_classifier: Callable[..., nn.Module]
    encoder: nn.Module | None = None
    stacked: bool = False
    chunk_frames: int = 0
    freeze_encoder: bool = False
    freeze_statistics: bool = False

    @nn.compact
    def __call__(
        self,
        frames: Array | Mapping[str, Array],
        lengths: Array,
        mask: Array | None = None,
        *,
        train: bool,
    ) -> Array:
        """Scores of each level, (B,T,M,K) float32, or (B,1,M,K) of clips; M levels, lowest first.

        Args:
          frames: (B,T,H,W,C) as the encoder takes them; without encoder, (B,T,h,w,D) or (B,T,D) for
            each level.
          lengths: (B,) int32 in [0,T], valid steps.
          mask: (B,) bool, clips that count in batch statistics; None: all.
          train: whether dropout acts and batch statistics are those of the batch.

        Raises:
          ValueError: levels other than those of ``recurrent``, maps that do not fit those of the
            level below, or arguments of another rank, dtype or range.
        """
        maps = self._levels(frames, lengths, mask, train)
        scores = []
        below = None
        for level, recurrent in self.recurrent.items():
            x = maps[level]
            if self.stacked and below is not None:
                x = jnp.concatenate([x, _max_pool_to(below, x, level).astype(x.dtype)], axis=-1)
            below = recurrent(x, lengths, train=train)  # (B,T,h,w,F) or (B,T,F)
            classifier = self.make_classifier(name=f"classifier_{level}")
            scores.append(classifier(average_over_space(below), lengths, train=train))
        return jnp.stack(scores, axis=2)

    def _levels(
        self,
        frames: Array | Mapping[str, Array],
        lengths: Array,
        mask: Array | None,
        train: bool,
    ) -> Mapping[str, Array]:
        """(B,T,h,w,D) or (B,T,D) of each level that ``recurrent`` names."""
        if self.encoder is None:
            if not isinstance(frames, Mapping):
                raise ValueError(
                    f"frames: expected the levels' maps by name, received shape {frames.shape}"
                )
            check_names("frames", self.recurrent, frames)
            for level, own in frames.items():
                check_clips(own, lengths, mask, name=f"frames[{level!r}]")
            return frames
        if isinstance(frames, Mapping):
            raise ValueError(f"frames: expected one array, received {', '.join(frames)}")
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
        if not isinstance(maps, Mapping):
            raise ValueError(
                f"encoder: expected maps by level, received shape {maps.shape}; name its levels"
            )
        check_names("encoder", self.recurrent, maps)
        return maps


def _max_pool_to(below: Array, maps: Array, level: str) -> Array:
    """(B,T,h,w,F) to the size of (B,T,h',w',D) or, of vectors (B,T,D), to (B,T,F)."""
    if below.ndim == 3 and maps.ndim == 3:
        return below
    if maps.ndim == 3:
        return jnp.max(below, axis=(2, 3))
    b, t, *size = below.shape[: below.ndim - 1]
    wanted = maps.shape[2:4]
    strides = [-(-n // m) for n, m in zip(size, wanted, strict=bool(size))]
    if below.ndim == 3 or [-(-n // s) for n, s in zip(size, strides, strict=True)] != list(wanted):
        raise ValueError(
            f"recurrent[{level!r}]: expected maps that windows cut the level below, "
            f"{tuple(size) or 'vectors'}, into, received {wanted}"
        )
    window = (strides[0], strides[1])
    pooled = max_pool(below.reshape(b * t, *below.shape[2:]), window, window, ceil_mode=True)
    return pooled.reshape(b, t, *pooled.shape[1:])
