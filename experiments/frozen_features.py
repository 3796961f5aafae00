"""Features of a frozen EfficientNet-Lite0: encoded once, cached, projected."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from data.features import digest_file, write_features
from data.streams import StreamSource
from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.pretrained import find_efficientnet_lite0, load_efficientnet_lite0
from flaxnets.spatial.chunks import map_in_chunks

Examples = list[dict[str, np.ndarray]]


@functools.lru_cache(maxsize=4)
def load_features(root: str, source: StreamSource, pool: str) -> Examples:
    """Features of ``source``, held in memory: a few hundred kilobytes a clip."""
    key = {
        "encoder": "efficientnet_lite0",
        "weights": digest_file(find_efficientnet_lite0()),
        "preprocessing": {
            "streams": source.streams,
            "steps": source.num_steps,
            "size": source.size,
            "gap": source.gap,
            "pool": pool,
        },
        "source": {path: digest_file(path) for path in source.videos.paths},
    }
    cached = write_features(root, source, make_encode(pool), key=key)
    return [cached[index] for index in range(len(cached))]


def make_encode(pool: str) -> Any:
    """The frozen encoder: (n,224,224,3) uint8 to (n,1280) float32, pooled over the map.

    Raises:
      ValueError: ``pool`` is neither ``max`` nor ``mean``.
    """
    if pool not in ("max", "mean"):
        raise ValueError(f"data.pool: expected 'max' or 'mean', received {pool!r}")
    encoder, variables = EfficientNetLite0(), load_efficientnet_lite0()

    # A few images stay in a CPU's caches; an accelerator wants many.
    chunk_size = 2 if jax.default_backend() == "cpu" else 64

    @jax.jit
    def encode(images: jax.Array) -> jax.Array:
        def maps(chunk: jax.Array) -> jax.Array:
            result: Any = encoder.apply(variables, chunk, train=False)
            return result

        features = map_in_chunks(maps, images, chunk_size)
        return features.max((1, 2)) if pool == "max" else features.mean((1, 2))

    return lambda images: np.asarray(encode(images))


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
