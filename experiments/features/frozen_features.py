"""Features of a frozen EfficientNet-Lite0: encoded once, cached, projected."""

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data.captions.examples import DecodedImages
from data.features import FeatureSource, digest_file, write_features
from data.video.streams import StreamSource
from flaxnets.encoders.efficientnet_lite import EfficientNetLite0
from flaxnets.encoders.pretrained import find_efficientnet_lite0, load_efficientnet_lite0
from flaxnets.layers.batch_sharding import map_in_chunks

logger = logging.getLogger(__name__)

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


def load_maps(root: str, images: DecodedImages, source: str) -> FeatureSource:
    """The encoder's maps of images, (7,7,1280) float16 each for 224², read from the cache.

    Encodes what the cache lacks, at about 30 images/s on 2 cores.

    Args:
      root: the folder of caches.
      images: of a size that the encoder halves five times.
      source: what tells these images from all others, as ``digest_images`` makes it.
    """
    key = {
        "encoder": "efficientnet_lite0",
        "weights": digest_file(find_efficientnet_lite0()),
        "preprocessing": dataclasses.asdict(images.transform),
        "source": source,
    }
    every = max(len(images) // 20, 1)

    def report(done: int, total: int) -> None:
        if done % every == 0 or done == total:
            logger.info("encoded %d of %d images", done, total)

    return write_features(root, images, make_encode("none"), key=key, on_progress=report)


def digest_images(paths: Sequence[str]) -> str:
    """One digest of the bytes of all files, in their order; an absent file has one, too."""
    digests = [digest_file(path) if Path(path).is_file() else "" for path in paths]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def make_encode(pool: str) -> Any:
    """The frozen encoder: (n,224,224,3) uint8 to (n,1280) float32, or the maps (n,7,7,1280).

    Args:
      pool: over the map, ``max`` or ``mean``; ``none``: the map itself.

    Raises:
      ValueError: another ``pool``.
    """
    if pool not in ("max", "mean", "none"):
        raise ValueError(f"data.pool: expected 'max', 'mean' or 'none', received {pool!r}")
    encoder, variables = EfficientNetLite0(), load_efficientnet_lite0()

    # A few images stay in a CPU's caches; an accelerator wants many.
    chunk_size = 2 if jax.default_backend() == "cpu" else 64

    @jax.jit
    def encode(images: jax.Array) -> jax.Array:
        def maps(chunk: jax.Array) -> jax.Array:
            result: Any = encoder.apply(variables, chunk, train=False)
            return result

        features = map_in_chunks(maps, images, chunk_size)
        if pool == "none":
            return features
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
