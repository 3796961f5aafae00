"""Features of frozen encoders: encoding, cache on disk, principal components, linear classifiers.

The linear classifiers are the baselines of a recurrent network on the same features.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm

from data.batches import Source
from data.features import FeatureSource, digest_file, find_features, write_features
from data.files import is_file
from flaxnets.encoders.config import EncoderConfig, load_encoder, make_encoder, weights_file
from flaxnets.layers.batch_sharding import map_in_chunks
from flaxnets.models.config import CRNNConfig
from flaxnets.models.crnn import FEATURE_POOLS, pool_over_space
from flaxnets.training.config import stands_in

logger = logging.getLogger(__name__)

Examples = list[dict[str, np.ndarray]]
"""Examples held in memory."""

Encode = Callable[[np.ndarray], np.ndarray]
"""Frozen encoder of images: (n,H,W,3) uint8 to (n,D) or (n,h,w,D) float32."""

_MEMORY_BYTES = 2**30
"""Most bytes of cached features that are held in memory; more are read from the cache."""


@dataclasses.dataclass
class ProjectedCRNNConfig(CRNNConfig):
    """Networks on principal components of a frozen encoder's features, some for each stream."""

    projection_features: int = 256
    """Number of principal components of the features, the inputs of the networks; beyond the number
    of features they are zero."""
    whitening: float = 0.5
    """Share of whitening in [0,1]. 0: principal components as they are; 1: unit variances."""
    members: int = 3
    """Networks of each stream, whose predictions are averaged."""


def cache_features(
    root: str,
    examples: Source,
    encoder: EncoderConfig,
    pool: str,
    *,
    preprocessing: Mapping[str, Any],
    source: Any,
) -> "FeatureSource | StandIns":
    """Returns the features of examples, float16; encodes those that the cache lacks.

    EfficientNet-Lite0 encodes about 30 images/s on 2 CPU cores. Inside
    ``flaxnets.training.config.rehearsal`` nothing is encoded: features that are not yet cached are
    stood in for by zeros.

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
    cached = find_features(root, key, examples=len(examples)) if len(examples) else None
    if cached is None and stands_in(f"features of {encoder.name}"):
        return StandIns(examples, encoder, pool)

    # A complete cache needs no encoder, so it is built at the first example.
    def encode(images: np.ndarray) -> np.ndarray:
        return shared_encode(encoder, pool)(images)

    with Progress("encoded", "example") as progress:
        return write_features(root, examples, encode, key=key, on_progress=progress)


def shared_encode(encoder: EncoderConfig, pool: str) -> Encode:
    """Returns ``make_encode``, compiled once for all calls with the last two configurations."""
    return _encode_of(json.dumps(dataclasses.asdict(encoder)), pool)


@functools.lru_cache(maxsize=2)
def _encode_of(encoder: str, pool: str) -> Encode:
    """Returns ``make_encode`` of a configuration in JSON; views of the same images share it."""
    values = json.loads(encoder)  # In which tuples are lists.
    kept: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    return make_encode(EncoderConfig(**kept), pool)


class Progress:
    """Progress of a task: a bar on a terminal, else a line of the log every ten seconds.

    Called with (done, total); shows nothing before its first call. Leaving the context ends the
    bar.

    Args:
      verb: as ``encoded``.
      unit: as ``example``.
    """

    SECONDS = 10.0
    """Seconds between two lines of the log."""

    def __init__(self, verb: str, unit: str) -> None:
        self._verb, self._unit = verb, unit
        self._bar: tqdm.tqdm | None = None
        self._start = self._last = time.monotonic()
        self._first = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int) -> None:
        """Shows that ``done`` of ``total`` are finished."""
        if self._bar is None:
            # What an earlier process encoded is no progress of this one, and the first example
            # takes the time of the compilation.
            self._first, self._start = done, time.monotonic()
            self._bar = tqdm.tqdm(
                total=total, initial=done - 1, unit=self._unit, desc=self._verb, disable=None
            )
        self._bar.update(done - self._bar.n)
        now = time.monotonic()
        if self._bar.disable and (now - self._last >= self.SECONDS or done == total):
            self._last = now
            speed = ""
            if done > self._first:
                rate = (done - self._first) / max(now - self._start, 1e-9)
                left = (total - done) / rate
                remaining = f", {left:.0f} s left" if left < 90 else f", {left / 60:.0f} min left"
                speed = f", {rate:.3g}/s{remaining if done < total else ''}"
            logger.info(
                "%s %s of %s %ss%s", self._verb, f"{done:,}", f"{total:,}", self._unit, speed
            )


def in_memory(features: Source) -> Source | Sequence[Mapping[str, np.ndarray]]:
    """Returns cached features as a list where they are small, and else as they are."""
    first = features[0]["features"]
    if first.nbytes * len(features) > _MEMORY_BYTES:
        return features
    return [features[index] for index in range(len(features))]


class StandIns:
    """Stand-ins for the features of examples: zeros in the shapes of the first one's.

    Args:
      examples: the examples, as for ``cache_features``; the first one is read.
      encoder: the frozen encoder, which is traced and not run.
      pool: pooling over space, as for ``make_encode``.
    """

    def __init__(self, examples: Source, encoder: EncoderConfig, pool: str) -> None:
        first = dict(examples[0])
        pixels = first.pop("image") if "image" in first else first.pop("video")
        *leading, height, width, channels = pixels.shape
        shape = describe_encoded(encoder, pool, (height, width, channels))
        self._example = {**first, "features": np.zeros((*leading, *shape), np.float16)}
        self._length = len(examples)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> dict[str, np.ndarray]:
        if not 0 <= index < self._length:
            raise IndexError(f"index: expected 0 to {self._length - 1}, received {index}")
        # A first file that cannot be read must not leave the batch without an example.
        there = {"index": np.asarray(index, np.int32), "mask": np.asarray(True)}
        return {**self._example, **there}


def describe_encoded(
    encoder: EncoderConfig, pool: str, image: tuple[int, int, int]
) -> tuple[int, ...]:
    """Returns the shape of the features of one image, (D,) or (h,w,D), without encoding it.

    Args:
      encoder: the frozen encoder.
      pool: as for ``make_encode``.
      image: H, W and C of the image.

    Raises:
      ValueError: an unknown ``pool``, or an encoder that cannot be built.

    >>> describe_encoded(EncoderConfig("resnet18"), "mean", (64, 64, 3))
    (512,)
    """
    check_pool(pool)
    network = make_encoder(encoder)

    def apply(images: jax.Array) -> Any:
        result: Any = network.init_with_output(jax.random.key(0), images, train=False)[0]
        return next(iter(result.values())) if isinstance(result, Mapping) else result

    shape = jax.eval_shape(apply, jax.ShapeDtypeStruct((1, *image), np.uint8)).shape[1:]
    return tuple(
        jax.eval_shape(
            lambda features: pool_over_space(features, pool),
            jax.ShapeDtypeStruct((1, *shape), np.float32),
        ).shape[1:]
    )


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


def describe_frozen_encoder(
    encoder: EncoderConfig, pool: str, *, dtype: str = "float32"
) -> dict[str, Any]:
    """Returns the ``encoder`` of ``Config.describe_inference`` for a network on its features.

    Args:
      encoder: the frozen encoder.
      pool: pooling over space, as for ``make_encode``.
      dtype: to which the features are rounded in predictions.
    """
    path = weights_file(encoder)
    return {
        "config": dataclasses.asdict(encoder),
        "pool": pool,
        "feature_dtype": dtype,
        "digest": digest_file(path) if path else "",
    }


def digest_images(paths: Sequence[str]) -> str:
    """Returns the SHA-256 of all files in order; a missing file counts as an empty digest."""
    digests = [digest_file(path) if is_file(path) else "" for path in paths]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def check_pool(pool: str) -> None:
    """Raises ValueError for an unknown pooling."""
    if pool not in FEATURE_POOLS:
        raise ValueError(f"data.pool: expected one of {FEATURE_POOLS}, received {pool!r}")


def make_encode(encoder: EncoderConfig, pool: str) -> Encode:
    """Returns a frozen encoder as a compiled function of images.

    Args:
      encoder: the encoder; random weights are those of seed 0.
      pool: pooling of feature maps over space: ``max``, ``mean``, ``flatten``, or ``none``, which
        returns the maps. Vectors are returned unchanged.

    Raises:
      ValueError: an unknown ``pool``.
    """
    check_pool(pool)
    network, variables = make_encoder(encoder), load_encoder(encoder)
    # The activations of a few images fit into a CPU's caches; accelerators need large batches.
    chunk_size = 2 if jax.default_backend() == "cpu" else 64

    @jax.jit
    def encode(variables: Any, images: jax.Array) -> jax.Array:
        def apply(chunk: jax.Array) -> jax.Array:
            result: Any = network.apply(variables, chunk, train=False)
            # An encoder with a level returns a dict of that one.
            return next(iter(result.values())) if isinstance(result, Mapping) else result

        return pool_over_space(map_in_chunks(apply, images, chunk_size), pool)

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
      size: P, number of components. Those beyond the D that there are, are zero.
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
    bias = -mean @ kernel
    if (missing := size - len(bias)) > 0:  # Of an encoder of few features.
        kernel, bias = np.pad(kernel, ((0, 0), (0, missing))), np.pad(bias, (0, missing))
    return kernel.astype(np.float32), bias.astype(np.float32)


def plain_features(examples: Examples) -> np.ndarray:
    """Returns the features of the S streams that are not mirrored, (N,T,S·D) float32."""
    features = np.stack([example["features"][::2] for example in examples])  # (N,S,T,D)
    n, _, steps, _ = features.shape
    return features.swapaxes(1, 2).reshape(n, steps, -1).astype(np.float32)


def predict_linear(
    inputs: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray
) -> list[tuple[int, int]]:
    """Fits logistic regression (L2, C = 1, not tuned) on standardised inputs, and predicts.

    Args:
      inputs: (N,D) float.
      labels: (N,) int.
      train: indices of the training examples.
      test: indices of the test examples.

    Returns:
      (label, prediction) of each test example.
    """
    # Not at the top: captioners use this module, too, without scikit-learn.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000))
    classifier.fit(inputs[train], labels[train])
    predictions = classifier.predict(inputs[test])
    return [(int(a), int(b)) for a, b in zip(labels[test], predictions, strict=True)]


def over_time(features: np.ndarray, prefix: str) -> Mapping[str, np.ndarray]:
    """Returns summaries of (N,T,D) features as (N,D') inputs, by names that begin with ``prefix``.

    Average and maximum over time do not depend on the order of the steps; the concatenated averages
    of three thirds do.
    """
    thirds = np.array_split(features, 3, axis=1)
    return {
        f"{prefix}, averaged over time (blind to order)": features.mean(1),
        f"{prefix}, maximum over time (blind to order)": features.max(1),
        f"{prefix}, averages of thirds, concatenated": np.concatenate(
            [third.mean(1) for third in thirds], -1
        ),
    }
