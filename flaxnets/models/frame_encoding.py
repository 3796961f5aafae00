"""The frames of clips through an encoder: whole or in chunks, trained, fine-tuned or frozen."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.layers.padding import check_lengths
from flaxnets.typing import Array

Maps = Array | dict[str, Array]
"""(B,T,h,w,D) maps or (B,T,D) vectors, or those of several levels by name."""


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
) -> Maps:
    """What a bound encoder makes of each frame.

    In training, batch statistics are those of all valid frames, so the encoder sees the batch
    whole. Where it runs with the statistics that it has (in evaluation, frozen, or fine-tuned with
    ``freeze_statistics``; its dropout rests, too) frames do not depend on each other, and
    ``chunk_frames`` of them are encoded at a time. For the gradient each chunk is encoded once more
    (rematerialised): the memory is that of one chunk's activations and all maps, at the price of
    another pass forwards.

    Args:
      encoder: (N,H,W,C) to maps (N,h,w,D), vectors (N,D) or a dict of them by level, called with
        ``mask`` (N,) and ``train``.
      frames: (B,T,H,W,C) uint8 or float.
      lengths: (B,) int32 in [0,T], valid frames.
      mask: (B,) bool, clips that count in batch statistics; None: all.
      train: whether it trains.
      chunk_frames: frames encoded at once; 0: all.
      freeze_encoder: no gradient, and statistics as they are.
      freeze_statistics: gradients, and statistics as they are.

    Returns:
      The encoder's outputs with (B,T) in the place of (N,).

    Raises:
      ValueError: as ``check_clips``, or frames of another rank.
    """
    check_clips(frames, lengths, mask)
    if frames.ndim != 5:
        raise ValueError(f"frames: expected rank 5, received shape {frames.shape}")
    b, t = frames.shape[:2]
    images = frames.reshape(b * t, *frames.shape[2:])
    if train and not (freeze_encoder or freeze_statistics):
        counts = jnp.arange(t) < jnp.asarray(lengths)[:, None]  # (B,T)
        if mask is not None:
            counts &= mask[:, None]
        maps = encoder(images, counts.reshape(-1), train=True)
    else:
        maps = _encode_in_chunks(encoder, images, chunk_frames)
    if freeze_encoder:
        maps = jax.lax.stop_gradient(maps)
    return jax.tree.map(lambda x: x.reshape(b, t, *x.shape[1:]), maps)


def check_clips(frames: Array, lengths: Array, mask: Array | None, *, name: str = "frames") -> None:
    """Refuses clips, lengths and a mask that are not of one batch.

    Raises:
      ValueError: frames without axes (B,T,...) or neither uint8 nor float, lengths that are not
        (B,) integers or, where they are known, not in [0,T], a mask that is not (B,) bool.
    """
    if frames.ndim < 3:
        raise ValueError(f"{name}: expected (B,T,...), received shape {frames.shape}")
    if frames.dtype != jnp.uint8 and not jnp.issubdtype(frames.dtype, jnp.floating):
        raise ValueError(f"{name}: expected uint8 or a float dtype, received {frames.dtype}")
    b, t = frames.shape[:2]
    check_lengths(lengths, b, t)
    if mask is not None and (mask.shape != (b,) or mask.dtype != bool):
        raise ValueError(f"mask: expected {(b,)} bool, received {mask.shape} {mask.dtype}")


def check_names(name: str, expected: Mapping[str, object], received: Mapping[str, object]) -> None:
    """Refuses names that are not those expected, in any order.

    Raises:
      ValueError: a name too many or too few.
    """
    if set(expected) != set(received):
        raise ValueError(
            f"{name}: expected {', '.join(expected)}, received {', '.join(received) or 'nothing'}"
        )


def unwrap_level(maps: Maps, name: str) -> Array:
    """The only level of an encoder that may give several.

    Raises:
      ValueError: a dict of more than one.
    """
    if not isinstance(maps, Mapping):
        return maps
    if len(maps) != 1:
        raise ValueError(f"{name}: expected one level, received {', '.join(maps)}")
    return next(iter(maps.values()))


def _encode_in_chunks(encoder: nn.Module, images: Array, chunk: int) -> Maps:
    """(N,H,W,C) to (N,...) with the statistics as they are, ``chunk`` images at a time; 0: all."""
    n = len(images)
    if not 0 < chunk < n or encoder.is_initializing():
        return encoder(images, None, train=False)

    def encode(module: nn.Module, carry: tuple[()], x: Array) -> tuple[tuple[()], Maps]:
        return carry, module(x, None, train=False)

    # Inside a scan nothing can merge the two passes, which is all that prevent_cse is for.
    scan = nn.scan(
        nn.remat(encode, prevent_cse=False),
        variable_broadcast=True,
        split_rngs={"params": False},
        in_axes=1,
        out_axes=1,
    )
    # Chunk k holds the images k, k + n/chunk, k + 2n/chunk …, so that devices among which the batch
    # is divided have a share of every chunk.
    images = jnp.pad(images, [(0, -n % chunk), *[(0, 0)] * (images.ndim - 1)])
    _, maps = scan(encoder, (), images.reshape(chunk, -1, *images.shape[1:]))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], maps)
