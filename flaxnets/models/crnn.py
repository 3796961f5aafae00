"""Convolutional-recurrent network for clips, and its CNN-only and RNN-only ablations.

Shapes on the way::

    frames (B,T,H,W,C) uint8
      → encoder     (B·T,H,W,C) → feature maps (B,T,h,w,D) or vectors (B,T,D)
      → pool        "mean" (B,T,D), "flatten" (B,T,h·w·D) or "none" (B,T,h,w,D)
      → recurrent   (B,T,F), or (B,T,h,w,F) of a convolutional cell
      → classifier  logits (B,T,K) of the steps, or (B,1,K) of the clip
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.encoders.encoder import EncoderOutputs, take_only_endpoint
from flaxnets.layers.batch_sharding import is_batch_known_sharded
from flaxnets.layers.padding import check_lengths, zero_where_masked
from flaxnets.typing import Array, Carry

POOLS = ("mean", "flatten", "none")
FEATURE_POOLS = ("max", "mean", "flatten", "none")
"""Poolings over space of the features of a frozen encoder."""


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
        ``encode_frames``); 0: all. It bounds the memory of fine-tuning and of multi-view tests,
        and small chunks fit into the caches of a CPU.
      freeze_encoder: whether the encoder runs as in evaluation and is not trained:
        ``make_train_step`` keeps it from weight decay, too.
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

    def __call__(
        self, frames: Array, lengths: Array, mask: Array | None = None, *, train: bool
    ) -> Array:
        """Returns logits of the steps, (B,T,K) float32, or of the clips, (B,1,K).

        Logits of padded steps are meaningless.

        Args:
          frames: (B,T,H,W,C) uint8 in [0,255] or float as the encoder takes them; without
            ``encoder`` features (B,T,D) or (B,T,h,w,D) float.
          lengths: (B,) integers in [0,T], valid steps, an array or a list. What lies in padding has
            no effect on values or gradients.
          mask: (B,) bool, clips that count in batch statistics; None: all.
          train: whether dropout acts and batch statistics are those of the batch.

        Raises:
          ValueError: frames, lengths or mask of another rank or dtype, lengths outside [0,T], an
            unknown ``pool``, or an encoder that returns several endpoints.
        """
        x, lengths = self._encode(frames, lengths, mask, train)
        if self.recurrent is not None:
            x = self.recurrent(x, lengths, train=train)  # (B,T,F) or (B,T,h,w,F)
        if self.classifier is None:
            return x
        return self.classifier(average_over_space(x), lengths, train=train)

    @property
    def obstacle(self) -> str:
        """The reason why the network has no ``stream``; empty if it has."""
        if self.classifier is None:
            return "the network has no classifier"
        for part in (self.recurrent, self.classifier):
            if part is None:
                continue
            if not hasattr(part, "stream"):
                return f"{type(part).__name__} has no stream"
            if reason := str(getattr(part, "obstacle", "")):
                return reason
        return ""

    def stream(
        self, carry: Carry | None, frames: Array, lengths: Array | None = None
    ) -> tuple[Carry, Any]:
        """Returns the new carry and the logits of the next frames of clips.

        The logits of all chunks are those of the whole clip, since each output depends on frames
        that came before alone. Dropout is not applied. A chunk without frames, (B,0,H,W,C), gives
        the carry before the first frame.

        >>> import functools, jax
        >>> from flaxnets.heads.classifier import StepClassifier
        >>> from flaxnets.recurrent.cells import GRUCell
        >>> from flaxnets.recurrent.layers import Recurrent
        >>> model = CRNN(StepClassifier(3), recurrent=Recurrent(functools.partial(GRUCell, 4)))
        >>> clips = jax.random.normal(jax.random.key(0), (2, 6, 5))  # (B,T,D), cached features
        >>> lengths = jnp.array([6, 6])
        >>> init = functools.partial(model.init_with_output, train=False)
        >>> whole, variables = init(jax.random.key(0), clips, lengths)
        >>> carry = None
        >>> for t in range(6):
        ...     chunk = clips[:, t : t + 1]
        ...     carry, logits = model.apply(variables, carry, chunk, method="stream")
        >>> bool(jnp.allclose(logits.steps, whole[:, -1:], atol=1e-6))
        True

        Args:
          carry: that of the chunk before; None for the first chunk.
          frames: (B,T,...), the next frames or features, as for ``__call__``.
          lengths: (B,) integers in [0,T], valid steps of this chunk; None: all.

        Returns:
          The carry, a pytree of (B,...), and ``flaxnets.heads.classifier.StreamLogits``.

        Raises:
          ValueError: a network that needs the whole clip (see ``obstacle``), or as ``__call__``.
        """
        if self.obstacle:
            raise ValueError(f"stream: expected a causal network, but {self.obstacle}")
        if lengths is None:
            lengths = jnp.full(frames.shape[:1], frames.shape[1], jnp.int32)
            given = None
        else:
            given = lengths
        x, lengths = self._encode(frames, lengths, None, False)
        before = {"recurrent": None, "classifier": None} if carry is None else carry
        after = dict(before)
        if self.recurrent is not None:
            after["recurrent"], x = self.recurrent.stream(before["recurrent"], x, given)
        x = average_over_space(x)
        assert self.classifier is not None  # See ``obstacle``.
        after["classifier"], logits = self.classifier.stream(before["classifier"], x, given)
        return after, logits

    @nn.compact
    def _encode(
        self, frames: Array, lengths: Array, mask: Array | None, train: bool
    ) -> tuple[Array, Array]:
        """Returns the inputs of the recurrent layer, (B,T,D) or (B,T,h,w,D), and the lengths."""
        if self.pool not in POOLS:
            raise ValueError(f"pool: expected 'mean', 'flatten' or 'none', received {self.pool!r}")
        ranks = (5,) if self.encoder is not None else (3, 5)
        if frames.ndim not in ranks:
            expected = " or ".join(map(str, ranks))
            raise ValueError(f"frames: expected rank {expected}, received shape {frames.shape}")
        lengths = check_clips(frames, lengths, mask)
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
            size = math.prod(x.shape[2:])
            x = x.mean(axis=(2, 3)) if self.pool == "mean" else x.reshape(b, t, size)
        return nn.Dropout(self.dropout_rate, deterministic=not train)(x), lengths


def pool_over_space(features: Array, pool: str) -> Array:
    """Returns feature maps (N,h,w,D) pooled to vectors, and vectors (N,D) as they are.

    Args:
      features: of N images.
      pool: one of ``FEATURE_POOLS``; ``flatten`` gives (N,h·w·D), ``none`` the maps.

    >>> maps = jnp.arange(12.0).reshape(1, 2, 3, 2)
    >>> pool_over_space(maps, "max").tolist(), pool_over_space(maps, "flatten").shape
    ([[10.0, 11.0]], (1, 12))
    """
    if features.ndim == 2 or pool == "none":
        return features
    if pool == "flatten":
        return features.reshape(len(features), -1)
    return features.max((1, 2)) if pool == "max" else features.mean((1, 2))


def average_over_space(features: Array) -> Array:
    """Averages (B,T,h,w,F) over positions to (B,T,F); vectors (B,T,F) pass as is."""
    if features.ndim == 3:
        return features
    return jnp.mean(features, axis=(2, 3))


# Frames of clips through an encoder, at once or in chunks: shared by all models of clips.


def encode_frames(
    encoder: nn.Module,
    frames: Array,
    lengths: Array,
    mask: Array | None = None,
    *,
    train: bool,
    chunk_frames: int = 0,
    freeze_encoder: bool = False,
    freeze_statistics: bool = False,
) -> EncoderOutputs:
    """Applies a bound encoder to every frame.

    In training, batch statistics are those of all valid frames, so the encoder sees the whole batch
    at once. Where it uses its running statistics (in evaluation, frozen, or fine-tuned with
    ``freeze_statistics``; dropout is then off, too) frames are independent, and ``chunk_frames`` of
    them are encoded at a time. The backward pass recomputes each chunk (rematerialisation): memory
    holds the activations of one chunk and all outputs, for the cost of a second forward pass.

    Padded float frames are read as zeros and so are, where batch statistics are taken, those of
    clips that do not count: the gradient of a NaN there would be NaN.

    Args:
      encoder: (N,H,W,C) to feature maps (N,h,w,D), vectors (N,D) or a dictionary of endpoints,
        called with ``mask`` (N,) and ``train``.
      frames: (B,T,H,W,C) uint8 in [0,255] or float.
      lengths: (B,) integers in [0,T], valid frames, an array or a list.
      mask: (B,) bool, clips that count in batch statistics; None: all.
      train: whether this is a training step.
      chunk_frames: frames encoded at a time; 0: all.
      freeze_encoder: whether there is no gradient and running statistics are used.
      freeze_statistics: whether running statistics are used, with gradients.

    Returns:
      The outputs of the encoder with axes (B,T) instead of (N,).

    Raises:
      ValueError: as for ``check_clips``, or frames of another rank.
    """
    lengths = check_clips(frames, lengths, mask)
    if frames.ndim != 5:
        raise ValueError(f"frames: expected rank 5, received shape {frames.shape}")
    b, t = frames.shape[:2]
    takes_statistics = train and not (freeze_encoder or freeze_statistics)
    counts = jnp.arange(t) < lengths[:, None]  # (B,T)
    if takes_statistics and mask is not None:
        counts &= mask[:, None]
    images = zero_where_masked(frames, counts).reshape(b * t, *frames.shape[2:])
    if takes_statistics:
        outputs = encoder(images, counts.reshape(b * t), train=True)
    else:
        outputs = _encode_in_chunks(encoder, images, chunk_frames)
    if freeze_encoder:
        outputs = jax.lax.stop_gradient(outputs)
    return jax.tree.map(lambda x: x.reshape(b, t, *x.shape[1:]), outputs)


def check_clips(
    frames: Array, lengths: Array, mask: Array | None, *, name: str = "frames"
) -> Array:
    """Returns lengths as (B,) int32; raises an error unless all arguments form one batch.

    Args:
      frames: (B,T,...) uint8 or float.
      lengths: (B,) integers in [0,T], see ``check_lengths``.
      mask: (B,) bool or None.
      name: of ``frames`` in errors.

    Raises:
      ValueError: an argument of another rank, shape, dtype or range.
    """
    if frames.ndim < 3:
        raise ValueError(f"{name}: expected (B,T,...), received shape {frames.shape}")
    if frames.dtype != jnp.uint8 and not jnp.issubdtype(frames.dtype, jnp.floating):
        raise ValueError(f"{name}: expected uint8 or a float dtype, received {frames.dtype}")
    b, t = frames.shape[:2]
    lengths = check_lengths(lengths, b, t)
    if mask is not None and (mask.shape != (b,) or mask.dtype != bool):
        raise ValueError(f"mask: expected {(b,)} bool, received {mask.shape} {mask.dtype}")
    return lengths


def check_names(name: str, expected: Mapping[str, object], received: Mapping[str, object]) -> None:
    """Raises an error unless two mappings have the same keys, in any order.

    Args:
      name: of the argument, in errors.
      expected: mapping with the expected keys.
      received: mapping to check.

    Raises:
      ValueError: a key is missing or unexpected.
    """
    if set(expected) != set(received):
        raise ValueError(
            f"{name}: expected {', '.join(expected)}, received {', '.join(received) or 'nothing'}"
        )


def _encode_in_chunks(encoder: nn.Module, images: Array, chunk: int) -> EncoderOutputs:
    """Encodes (N,H,W,C) with running statistics, ``chunk`` images at a time; 0: all."""
    n = images.shape[0]  # Not len, which wants a number: exports leave the batch open.
    if not 0 < chunk < n or encoder.is_initializing():
        return encoder(images, None, train=False)

    def encode(module: nn.Module, carry: tuple[()], x: Array) -> tuple[tuple[()], EncoderOutputs]:
        return carry, module(x, None, train=False)

    # prevent_cse would keep XLA from merging the recomputation with the forward pass; inside a scan
    # that cannot happen, and its barriers would cost time.
    scan = nn.scan(
        nn.remat(encode, prevent_cse=False),
        variable_broadcast=True,
        split_rngs={"params": False},
        in_axes=1,
        out_axes=1,
    )
    if not is_batch_known_sharded():  # As many chunks, but of equal size: less padding.
        chunk = -(-n // -(-n // chunk))
    # Chunk k holds the images k, k + n/chunk, k + 2n/chunk …, so that every device of a sharded
    # batch has its share of every chunk.
    images = jnp.pad(images, [(0, -n % chunk), *[(0, 0)] * (images.ndim - 1)])
    _, outputs = scan(encoder, (), images.reshape(chunk, -1, *images.shape[1:]))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], outputs)
