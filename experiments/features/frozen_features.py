"""Features of frozen encoders: encoded once, cached, projected."""

import functools
import hashlib
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
Encode = Callable[[np.ndarray], np.ndarray]
"""Images (n,H,W,3) uint8 to features (n,D), or (n,h,w,D), float32."""

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
    """Returns the features of examples, encoding those that the cache lacks.

    EfficientNet-Lite0 encodes about 30 images/s on 2 cores.

    Args:
      root: the folder of caches.
      examples: as ``write_features`` takes them.
      encoder: the frozen encoder.
      pool: as for ``make_encode``.
      preprocessing: the settings that decide on the pixels, as JSON.
      source: digests that tell these files from all others, as JSON.
    """
    key = {**describe_encoder(encoder), "preprocessing": {**preprocessing}, "source": source}
    every = max(len(examples) // 20, 1)

    def report(done: int, total: int) -> None:
        if done % every == 0 or done == total:
            logger.info("encoded %d of %d examples", done, total)

    # The encoder is made only where something is missing.
    encode = functools.cache(lambda: make_encode(encoder, pool))
    return write_features(
        root, examples, lambda images: encode()(images), key=key, on_progress=report
    )


def describe_encoder(encoder: EncoderConfig) -> dict[str, Any]:
    """Returns the part of a cache's key that tells the encoder and its weights."""
    path = weights_file(encoder)
    described = {"encoder": encoder.name, "weights": digest_file(path) if path else "random"}
    given = {
        name: getattr(encoder, name)
        for name in ("level", "features", "strides", "input_size")
        if getattr(encoder, name)
    }
    return {**described, **({"options": given} if given else {})}


def digest_images(paths: Sequence[str]) -> str:
    """Returns one digest of the bytes of all files in order; an absent file has one, too."""
    digests = [digest_file(path) if Path(path).is_file() else "" for path in paths]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def make_encode(encoder: EncoderConfig, pool: str) -> Encode:
    """Returns the frozen encoder as a function of images.

    Args:
      encoder: the encoder; with random weights they are those of seed 0.
      pool: over the positions of its feature maps, ``max`` or ``mean``; ``none``: the maps
        themselves. Vectors pass as they are.

    Raises:
      ValueError: another ``pool``.
    """
    if pool not in POOLS:
        raise ValueError(f"data.pool: expected 'max', 'mean' or 'none', received {pool!r}")
    network, variables = make_encoder(encoder), load_encoder(encoder)
    # A few images stay in a CPU's caches; an accelerator wants many.
    chunk_size = 2 if jax.default_backend() == "cpu" else 64

    @jax.jit
    def encode(variables: Any, images: jax.Array) -> jax.Array:
        def apply(chunk: jax.Array) -> jax.Array:
            result: Any = network.apply(variables, chunk, train=False)
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


def encode_example(example: Mapping[str, Any], encode: Any) -> dict[str, np.ndarray]:
    """An example of images, (V,T,H,W,3), as one of features, (V,T,1280)."""
    video = example["video"]
    features = encode(video.reshape(-1, *video.shape[2:])).reshape(*video.shape[:2], -1)
    rest = {name: value for name, value in example.items() if name != "video"}
    return {**rest, "features": features}


def fit_projection(
    features: np.ndarray, size: int, *, whitening: float
) -> tuple[np.ndarray, np.ndarray]:
    """Standardisation and principal components as one affine map.

    Args:
      features: (N,D) float32 of the training clips.
      size: components kept, P.
      whitening: w; component k of variance v_k is divided by (v_k^w · v_1^(1−w))^(1/2), so that
        the first always has unit variance.

    Returns:
      kernel (D,P) and bias (P,), float32.
    """
    mean, scale = features.mean(0), features.std(0) + 1e-2
    standard = (features - mean) / scale
    variances, vectors = np.linalg.eigh(standard.T @ standard / len(standard))
    variances, vectors = variances[::-1][:size], vectors[:, ::-1][:, :size]
    variances = np.maximum(variances, 1e-6 * variances[0])
    kernel = vectors / scale[:, None]
    kernel = kernel / (variances**whitening * variances[0] ** (1 - whitening)) ** 0.5
    return kernel.astype(np.float32), (-mean @ kernel).astype(np.float32)


def plain_features(examples: Examples) -> np.ndarray:
    """Features of the streams that are not mirrored, (N,T,S·D) float32."""
    features = np.stack([example["features"][::2] for example in examples])  # (N,S,T,D)
    n, _, steps, _ = features.shape
    return features.swapaxes(1, 2).reshape(n, steps, -1).astype(np.float32)
