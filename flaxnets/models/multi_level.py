"""Recurrent layers on several endpoints of one encoder, with a classifier each (GRU-RCN)."""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers.padding import check_lengths
from flaxnets.layers.pooling import max_pool
from flaxnets.models.crnn import (
    average_over_space,
    check_clips,
    check_names,
    encode_frames,
)
from flaxnets.typing import Array


class MultiLevelCRNN(nn.Module):
    """GRU-RCN: a recurrent layer and a classifier on each of several encoder endpoints.

    Ballas et al., "Delving Deeper into Convolutional Networks for Learning Video Representations",
    1511.06432. Low endpoints have the resolution for fine motion, high ones the semantics. Each
    endpoint has a recurrent layer, convolutional on feature maps and dense on vectors, and a
    classifier on its outputs averaged over positions; the task trains each on its own loss and
    averages their probabilities. The network of the paper (section 3.1), for K classes, with
    dropout 0.7 and one decision from the last step:

        MultiLevelCRNN(
            encoder=VGG(levels=("pool2", "pool3", "pool4", "pool5", "fc7")),
            recurrent={
                "pool2": Recurrent(partial(ConvGRUCell, 64)),
                ...
                "fc7": Recurrent(partial(GRUCell, 512)),
            },
            make_classifier=partial(ClipClassifier, K, pool_last, dropout_rate=0.7),
        )

    ``stacked`` is the Stacked GRU-RCN (section 3.2): endpoint l also reads the outputs of endpoint
    l−1, max-pooled to its size and concatenated with its own feature maps. The convolution of the
    concatenation is the sum of two convolutions in the equations of the paper.

    A Linen instance is one set of parameters: endpoints that are given the same instance, of a
    recurrent layer or of an ``AttentionPooling`` in ``make_classifier``, share it.

    Deviations: in the paper the encoder is a frozen feature extractor; here ``freeze_encoder`` is a
    choice. If stacked, both summands share one initialisation, scaled by their joint width.

    >>> import functools, jax
    >>> from flaxnets.encoders.small_cnn import SmallCNN
    >>> from flaxnets.heads.classifier import StepClassifier
    >>> from flaxnets.recurrent.cells import GRUCell
    >>> from flaxnets.recurrent.convolutional_cells import ConvGRUCell
    >>> from flaxnets.recurrent.layers import Recurrent
    >>> model = MultiLevelCRNN(
    ...     encoder=SmallCNN((8, 16), (2, 2), levels=("stage_1", "pooled")),
    ...     recurrent={
    ...         "stage_1": Recurrent(functools.partial(ConvGRUCell, 4)),
    ...         "pooled": Recurrent(functools.partial(GRUCell, 32)),
    ...     },
    ...     make_classifier=functools.partial(StepClassifier, 5),
    ... )
    >>> video, lengths = jnp.zeros((2, 6, 16, 16, 3), jnp.uint8), jnp.array([6, 4])
    >>> init = functools.partial(model.init_with_output, train=False)
    >>> logits, _ = jax.eval_shape(init, jax.random.key(0), video, lengths)
    >>> logits.shape  # (B,T,M,K), M endpoints
    (2, 6, 2, 5)

    Attributes:
      recurrent: a layer for each endpoint, from the lowest to the highest; called with ``lengths``
        and ``train``.
      make_classifier: constructs the classifier of an endpoint; called with ``name``.
      encoder: (N,H,W,C) to a dictionary of feature maps (N,h,w,D) or vectors (N,D) by endpoint;
        None: the inputs are such a dictionary.
      stacked: whether an endpoint also reads the one before it.
      chunk_frames: as for ``CRNN``, as are the next two.
      freeze_encoder: whether the encoder runs as in evaluation and is not trained.
      freeze_statistics: whether the encoder uses running statistics while it trains.
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
        """Returns logits (B,T,M,K) float32, or (B,1,M,K) of clips, of M endpoints, lowest first.

        Args:
          frames: (B,T,H,W,C) as the encoder takes them; without ``encoder`` a dictionary of
            (B,T,h,w,D) or (B,T,D) by endpoint.
          lengths: (B,) integers in [0,T], valid steps, an array or a list.
          mask: (B,) bool, clips that count in batch statistics; None: all.
          train: whether dropout acts and batch statistics are those of the batch.

        Raises:
          ValueError: endpoints other than those of ``recurrent``, stacked feature maps whose size
            pooling cannot reach, or arguments of another rank, dtype or range.
        """
        maps = self._encode(frames, lengths, mask, train)
        lengths = check_lengths(lengths, *next(iter(maps.values())).shape[:2])
        logits = []
        below = None
        for level, recurrent in self.recurrent.items():
            x = maps[level]
            if self.stacked and below is not None:
                x = jnp.concatenate([x, _max_pool_to(below, x, level).astype(x.dtype)], axis=-1)
            below = recurrent(x, lengths, train=train)  # (B,T,h,w,F) or (B,T,F)
            classifier = self.make_classifier(name=f"classifier_{level}")
            logits.append(classifier(average_over_space(below), lengths, train=train))
        return jnp.stack(logits, axis=2)

    def _encode(
        self,
        frames: Array | Mapping[str, Array],
        lengths: Array,
        mask: Array | None,
        train: bool,
    ) -> Mapping[str, Array]:
        """Returns (B,T,h,w,D) or (B,T,D) of each endpoint that ``recurrent`` names."""
        if self.encoder is None:
            if not isinstance(frames, Mapping):
                raise ValueError(
                    f"frames: expected feature maps by endpoint, received shape {frames.shape}"
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
                "encoder: expected a dictionary of endpoints, received shape "
                f"{maps.shape}; name its levels"
            )
        check_names("encoder", self.recurrent, maps)
        return maps


def _max_pool_to(below: Array, maps: Array, level: str) -> Array:
    """Max-pools (B,T,h,w,F) to the size of ``maps`` (B,T,h',w',D), or (B,T,D) to (B,T,F).

    Raises:
      ValueError: no windows of equal size pool the one to the other.
    """
    if below.ndim == 3 and maps.ndim == 3:
        return below
    if maps.ndim == 3:
        return jnp.max(below, axis=(2, 3))
    b, t, *size = below.shape[: below.ndim - 1]
    wanted = maps.shape[2:4]
    strides = [-(-n // m) for n, m in zip(size, wanted, strict=bool(size))]
    if below.ndim == 3 or [-(-n // s) for n, s in zip(size, strides, strict=True)] != list(wanted):
        raise ValueError(
            f"recurrent[{level!r}]: expected a size that max pooling of the endpoint below, "
            f"{tuple(size) or 'vectors'}, can reach, received {wanted}"
        )
    window = (strides[0], strides[1])
    pooled = max_pool(below.reshape(b * t, *below.shape[2:]), window, window, ceil_mode=True)
    return pooled.reshape(b, t, *pooled.shape[1:])
