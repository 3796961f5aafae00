"""Frames of clips through an encoder: at once or in chunks, trained, fine-tuned or frozen."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.layers.padding import check_lengths
from flaxnets.typing import Array

EncoderOutputs = Array | dict[str, Array]
"""Feature maps (B,T,h,w,D) or vectors (B,T,D), or those of several endpoints by name."""


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

    Args:
      encoder: (N,H,W,C) to feature maps (N,h,w,D), vectors (N,D) or a dictionary of endpoints,
        called with ``mask`` (N,) and ``train``.
      frames: (B,T,H,W,C) uint8 in [0,255] or float.
      lengths: (B,) int32 in [0,T], valid frames.
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
    check_clips(frames, lengths, mask)
    if frames.ndim != 5:
        raise ValueError(f"frames: expected rank 5, received shape {frames.shape}")
    b, t = frames.shape[:2]
    images = frames.reshape(b * t, *frames.shape[2:])
    if train and not (freeze_encoder or freeze_statistics):
        counts = jnp.arange(t) < jnp.asarray(lengths)[:, None]  # (B,T)
        if mask is not None:
            counts &= mask[:, None]
        outputs = encoder(images, counts.reshape(-1), train=True)
    else:
        outputs = _encode_in_chunks(encoder, images, chunk_frames)
    if freeze_encoder:
        outputs = jax.lax.stop_gradient(outputs)
    return jax.tree.map(lambda x: x.reshape(b, t, *x.shape[1:]), outputs)


def check_clips(frames: Array, lengths: Array, mask: Array | None, *, name: str = "frames") -> None:
    """Raises an error unless clips, lengths and mask form one batch.

    Args:
      frames: (B,T,...) uint8 or float.
      lengths: (B,) integers in [0,T]; values are checked outside jitted functions only.
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
    check_lengths(lengths, b, t)
    if mask is not None and (mask.shape != (b,) or mask.dtype != bool):
        raise ValueError(f"mask: expected {(b,)} bool, received {mask.shape} {mask.dtype}")


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


def take_only_endpoint(outputs: EncoderOutputs, name: str) -> Array:
    """Returns the only endpoint of an encoder's outputs.

    Args:
      outputs: an array, or a dictionary with one endpoint.
      name: of the encoder, in errors.

    Raises:
      ValueError: several endpoints.
    """
    if not isinstance(outputs, Mapping):
        return outputs
    if len(outputs) != 1:
        raise ValueError(
            f"{name}: expected one endpoint, received {', '.join(outputs)}; "
            "name one in the encoder's levels"
        )
    return next(iter(outputs.values()))


def _encode_in_chunks(encoder: nn.Module, images: Array, chunk: int) -> EncoderOutputs:
    """Encodes (N,H,W,C) with running statistics, ``chunk`` images at a time; 0: all."""
    n = len(images)
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
    # Chunk k holds the images k, k + n/chunk, k + 2n/chunk …, so that every device of a sharded
    # batch has its share of every chunk.
    images = jnp.pad(images, [(0, -n % chunk), *[(0, 0)] * (images.ndim - 1)])
    _, outputs = scan(encoder, (), images.reshape(chunk, -1, *images.shape[1:]))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], outputs)
