"""Features of frozen encoders: encoding, cache on disk, projection on principal components."""

import dataclasses
import functools
import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.batches import Source
from data.features import FeatureSource, digest_file, write_features
from flaxnets.encoders.config import EncoderConfig, load_encoder, make_encoder, weights_file
from flaxnets.layers.batch_sharding import map_in_chunks

logger = logging.getLogger(__name__)

Examples = list[dict[str, np.ndarray]]
"""Examples held in memory."""

Encode = Callable[[np.ndarray], np.ndarray]
"""Frozen encoder of images: (n,H,W,3) uint8 to (n,D) or (n,h,w,D) float32."""

POOLS = ("max", "mean", "none")


def cache_features(
    root: str,
    examples: Source,
    encoder: EncoderConfig,
    pool: str,
    *,
    preprocessing: Mapping[str, Any],
    source: Any,
) -> FeatureSource:
    """Returns the features of examples, float16; encodes those that the cache lacks.

    EfficientNet-Lite0 encodes about 30 images/s on 2 CPU cores.

    Args:
      root: folder of all caches.
      examples: examples of images or videos, as for ``write_features``.
      encoder: the frozen encoder.
      pool: pooling over space, as for ``make_encode``.
      preprocessing: all settings that the pixels depend on; JSON-serialisable.
      source: digests that identify the files; JSON-serialisable.

    Raises:
      ValueError: an unknown ``pool``, or as ``write_features``.
    """
    key = {**describe_encoder(encoder), "preprocessing": {**preprocessing}, "source": source}
    every = max(len(examples) // 20, 1)

    def report(done: int, total: int) -> None:
        if done % every == 0 or done == total:
            logger.info("encoded %d of %d examples", done, total)

    # A complete cache needs no encoder, so it is built at the first example.
    def encode(images: np.ndarray) -> np.ndarray:
        return _encode_of(json.dumps(dataclasses.asdict(encoder)), pool)(images)

    return write_features(root, examples, encode, key=key, on_progress=report)


@functools.lru_cache(maxsize=1)
def _encode_of(encoder: str, pool: str) -> Encode:
    """Returns ``make_encode`` of a configuration in JSON; views of the same images share it."""
    values = json.loads(encoder)  # In which tuples are lists.
    kept: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in values.items()
    }
    return make_encode(EncoderConfig(**kept), pool)


def describe_encoder(encoder: EncoderConfig) -> dict[str, Any]:
    """Returns the part of a cache's key that identifies the encoder and its weights."""
    path = weights_file(encoder)
    described = {"encoder": encoder.name, "weights": digest_file(path) if path else "random"}
    if ":" in encoder.name:  # The code of one's own encoder may change, unlike its name.
        source = inspect.getsourcefile(type(make_encoder(encoder)))
        described["code"] = digest_file(source) if source else ""
    given = {
        name: getattr(encoder, name)
        for name in ("level", "features", "strides", "input_size")
        if getattr(encoder, name)
    }
    return {**described, **({"options": given} if given else {})}


def digest_images(paths: Sequence[str]) -> str:
    """Returns the SHA-256 of all files in order; a missing file counts as an empty digest."""
    digests = [digest_file(path) if Path(path).is_file() else "" for path in paths]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def make_encode(encoder: EncoderConfig, pool: str) -> Encode:
    """Returns a frozen encoder as a compiled function of images.

    Args:
      encoder: the encoder; random weights are those of seed 0.
      pool: pooling of feature maps over space: ``max``, ``mean``, or ``none``, which returns the
        maps. Vectors are returned unchanged.

    Raises:
      ValueError: an unknown ``pool``.
    """
    if pool not in POOLS:
        raise ValueError(f"data.pool: expected 'max', 'mean' or 'none', received {pool!r}")
    network, variables = make_encoder(encoder), load_encoder(encoder)
    # The activations of a few images fit into a CPU's caches; accelerators need large batches.
    chunk_size = 2 if jax.default_backend() == "cpu" else 64

    @jax.jit
    def encode(variables: Any, images: jax.Array) -> jax.Array:
        def apply(chunk: jax.Array) -> jax.Array:
            result: Any = network.apply(variables, chunk, train=False)
            # An encoder with a level returns a dict of that one.
            return next(iter(result.values())) if isinstance(result, Mapping) else result

        features = map_in_chunks(apply, images, chunk_size)
        if pool == "none" or features.ndim == 2:
            return features
        return features.max((1, 2)) if pool == "max" else features.mean((1, 2))

    def run(images: np.ndarray) -> np.ndarray:
        nonlocal variables
        if variables is None:
            init = jax.jit(lambda key: network.init(key, images[:1], train=False))
            variables = init(jax.random.key(0))
        return np.asarray(encode(variables, images))

    return run


def encode_example(example: Mapping[str, Any], encode: Encode) -> dict[str, np.ndarray]:
    """Returns an example with ``features`` (V,T,...) float32 in place of ``video`` (V,T,H,W,3)."""
    video = example["video"]
    features = encode(video.reshape(-1, *video.shape[2:]))
    rest = {name: value for name, value in example.items() if name != "video"}
    return {**rest, "features": features.reshape(*video.shape[:2], *features.shape[1:])}


def fit_projection(
    features: np.ndarray, size: int, *, whitening: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns standardisation and principal components as one affine map.

    Args:
      features: (N,D) float32, of the training clips.
      size: P, number of components.
      whitening: w in [0,1]; component k of variance v_k is divided by
        (v_k^w · v_1^(1−w))^(1/2), so the first component always has unit variance.

    Returns:
      kernel (D,P) and bias (P,), float32.
    """
    # The constant keeps features that hardly vary from being scaled up to noise.
    mean, scale = features.mean(0), features.std(0) + 1e-2
    standard = (features - mean) / scale
    variances, vectors = np.linalg.eigh(standard.T @ standard / len(standard))
    variances, vectors = variances[::-1][:size], vectors[:, ::-1][:, :size]
    variances = np.maximum(variances, 1e-6 * variances[0])
    kernel = vectors / scale[:, None]
    kernel = kernel / (variances**whitening * variances[0] ** (1 - whitening)) ** 0.5
    return kernel.astype(np.float32), (-mean @ kernel).astype(np.float32)


def plain_features(examples: Examples) -> np.ndarray:
    """Returns the features of the S streams that are not mirrored, (N,T,S·D) float32."""
    features = np.stack([example["features"][::2] for example in examples])  # (N,S,T,D)
    n, _, steps, _ = features.shape
    return features.swapaxes(1, 2).reshape(n, steps, -1).astype(np.float32)
