"""TS-LSTM: features of several streams, pooled within segments of the clip, then recurrence."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers.padding import check_lengths
from flaxnets.models.crnn import check_clips
from flaxnets.typing import Array


class TemporalSegments(nn.Module):
    """Concatenated features of streams, maximum over each of N segments, recurrent layer, head.

    Ma et al., "TS-LSTM and Temporal-Inception", 1703.10667, section 4.1: the pooling removes what
    successive frames have in common, and the recurrent layer sees N steps instead of T. Of L valid
    steps, segment n of S = min(N, L) has those from ⌊n·L/S⌋ to ⌊(n+1)·L/S⌋ − 1.

    >>> import functools, jax
    >>> from flaxnets.heads.classifier import ClipClassifier
    >>> from flaxnets.heads.pooling import pool_last
    >>> from flaxnets.recurrent.cells import LSTMCell
    >>> from flaxnets.recurrent.layers import Recurrent
    >>> model = TemporalSegments(
    ...     recurrent=Recurrent(functools.partial(LSTMCell, 32)),
    ...     classifier=ClipClassifier(5, pool_last),
    ... )
    >>> frames = {"rgb": jnp.zeros((2, 25, 16)), "flow": jnp.zeros((2, 25, 16))}
    >>> init = functools.partial(model.init_with_output, train=False)
    >>> logits, variables = jax.eval_shape(init, jax.random.key(0), frames, jnp.array([25, 4]))
    >>> logits.shape, sorted(variables["params"])
    ((2, 1, 5), ['classifier', 'recurrent'])

    Attributes:
      recurrent: (B,N,ΣD) to (B,N,F), called with ``lengths`` and ``train``; None: the
        identity.
      classifier: (B,N,F) to logits of the clip (B,1,K), called in the same way.
      num_segments: N.
      dropout_rate: on the pooled features.
    """

    recurrent: nn.Module | None
    classifier: nn.Module
    num_segments: int = 3
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self,
        frames: Array | Mapping[str, Array],
        lengths: Array,
        mask: Array | None = None,
        *,
        train: bool,
    ) -> Array:
        """Returns logits of the clips, (B,1,K) float32.

        Args:
          frames: (B,T,D) float, or such features by stream, concatenated in the order of the names.
          lengths: (B,) integers in [0,T], valid steps of all streams, an array or a list.
          mask: (B,) bool, clips that count; not read, since clips are independent.
          train: whether dropout acts.

        Raises:
          ValueError: streams of different B or T, feature maps, or arguments of another rank, dtype
            or range.
        """
        streams = frames if isinstance(frames, Mapping) else {"features": frames}
        clips = next(iter(streams.values())).shape[:2]
        for name, stream in streams.items():
            lengths = check_clips(stream, lengths, mask, name=f"frames[{name!r}]")
            if stream.ndim != 3 or stream.shape[:2] != clips:
                raise ValueError(
                    f"frames[{name!r}]: expected (B,T,D) with (B,T) = {clips}, received shape "
                    f"{stream.shape}"
                )
        x = jnp.concatenate([streams[name] for name in sorted(streams)], axis=-1)
        x, counts = pool_segments(x, lengths, self.num_segments)  # (B,N,ΣD)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        if self.recurrent is not None:
            x = self.recurrent(x, counts, train=train)
        logits: Array = self.classifier(x, counts, train=train)
        return logits


def pool_segments(inputs: Array, lengths: Array, num_segments: int) -> tuple[Array, Array]:
    """Returns the maximum over the steps of each segment, and the number of segments of a clip.

    >>> steps = jnp.arange(10.0).reshape(2, 5, 1)
    >>> pooled, counts = pool_segments(steps, jnp.array([5, 2]), 3)
    >>> pooled[..., 0].tolist(), counts.tolist()
    ([[0.0, 2.0, 4.0], [5.0, 6.0, 0.0]], [3, 2])

    Args:
      inputs: (B,T,D) float; what lies beyond the lengths is not read.
      lengths: (B,) integers in [0,T], valid steps.
      num_segments: N, at least 1.

    Returns:
      (B,N,D), zeros in segments that a short clip lacks, and (B,) int32 in [0,N].

    Raises:
      ValueError: ``num_segments`` below 1, or lengths as for ``check_lengths``.
    """
    if num_segments < 1:
        raise ValueError(f"num_segments: expected at least 1, received {num_segments}")
    lengths = check_lengths(lengths, *inputs.shape[:2])
    counts = jnp.minimum(lengths, num_segments)  # (B,)
    steps = jnp.arange(inputs.shape[1])
    # The last segment n whose first step ⌊n·L/S⌋ is not behind step t.
    ends = (steps + 1) * counts[:, None] - 1
    segments = ends // jnp.maximum(lengths, 1)[:, None]
    segments = jnp.where(steps < lengths[:, None], segments, num_segments)  # (B,T)
    pooled = []
    for segment in range(num_segments):
        inside = (segments == segment)[..., None]
        largest = jnp.max(jnp.where(inside, inputs, -jnp.inf), axis=1)
        pooled.append(jnp.where(inside.any(axis=1), largest, 0))
    return jnp.stack(pooled, axis=1).astype(inputs.dtype), counts
