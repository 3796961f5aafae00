"""Functions of trained models as ``runtime.functions`` defines them, by Linen modules."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxnets.decoders.hypotheses import Hypotheses
from flaxnets.decoders.search import SearchOptions, search_captions
from flaxnets.inference.runtime.functions import Captions, Carry, Clips
from flaxnets.models.frozen_encoder import FrozenEncoder
from flaxnets.tasks.video_classification import VideoClassification, step_probabilities
from flaxnets.typing import Array, PyTree

ENCODE_AT_ONCE = 64
"""Most images that one call of a frozen encoder is given."""


class LinenClassifier:
    """Functions of a classifier of clips or images: a Linen module and its variables."""

    def __init__(self, module: nn.Module, variables: Mapping[str, PyTree], averaging: str) -> None:
        """Compiles nothing yet.

        Args:
          module: called with frames (B,T,…), lengths (B,) and ``train``; returns logits.
          variables: of the module.
          averaging: ``VideoClassification.loss_kind``, how the steps' logits make the clip's.
        """
        self.module, self.variables = module, jax.device_put(dict(variables))
        self.task = VideoClassification(loss_kind=averaging)
        self._classify = jax.jit(self.classify_clips)
        self._encode = _FrozenImages(module) if isinstance(module, FrozenEncoder) else None
        self._classify_features = jax.jit(partial(self.classify_clips, method="apply_network"))
        self._start, self._step = jax.jit(self.start_stream), jax.jit(self.step_stream)

    @property
    def obstacle(self) -> str:
        """The reason why the model is not causal; empty if it is."""
        if not hasattr(self.module, "stream"):
            return f"{type(self.module).__name__} reads the whole clip"
        return str(getattr(self.module, "obstacle", ""))

    @property
    def causal(self) -> bool:
        """True if ``step`` is available."""
        return not self.obstacle

    def start_stream(self, variables: PyTree, frames: Array) -> Carry:
        """Returns the carry before the first of frames (B,H,W,3); traceable."""
        return self.task.start_stream(self.module, variables, frames)

    def step_stream(
        self, variables: PyTree, carry: Carry, frames: Array
    ) -> tuple[Carry, Array, Array]:
        """Returns the carry after frames (B,H,W,3) and the probabilities; traceable."""
        return self.task.predict_step(self.module, variables, carry, frames)

    def classify_clips(
        self, variables: PyTree, frames: Array, lengths: Array, method: str | None = None
    ) -> tuple[Array, Array | None]:
        """Returns (B,K) probabilities of clips and (B,T,K) of their steps, or None.

        Traceable: an export lowers it.

        Args:
          variables: of the module.
          frames: (B,T,…) as the module, or its ``method``, takes them.
          lengths: (B,) int32.
          method: of the module; None: ``__call__``.
        """
        options: dict[str, Any] = {} if method else {"train": False}
        logits: Any = self.module.apply(variables, frames, lengths, method=method, **options)
        probabilities = self.task.clip_probabilities(logits, lengths, frames.shape[1])
        # A head that pools over time gives one step, the clip.
        pooled = logits.shape[1] != frames.shape[1]
        return probabilities, None if pooled else step_probabilities(logits)

    def classify(self, frames: np.ndarray, lengths: np.ndarray) -> Clips:
        """Classifies clips, see ``ClassifierFunctions``."""
        if self._encode is None:
            found = self._classify(self.variables, frames, lengths)
        else:
            features = self._encode(self.variables, frames)
            found = self._classify_features(self.variables, features, lengths)
        return Clips(*jax.device_get(found))

    def num_classes(self, clip_shape: tuple[int, ...]) -> int:
        """Returns K; traces the functions for one clip (T,…) and so checks the variables."""
        dtype = jnp.uint8 if len(clip_shape) > 2 else jnp.float32  # Pictures, or a spectrogram.
        frames = jax.ShapeDtypeStruct((1, *clip_shape), dtype)
        lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
        if self._encode is None:
            found = self._classify.eval_shape(self.variables, frames, lengths)
        else:
            features = self._encode.eval_shape(self.variables, frames)
            found = self._classify_features.eval_shape(self.variables, features, lengths)
        return int(found[0].shape[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        # Compiled functions cannot be pickled, but made anew.
        return type(self), (self.module, jax.device_get(self.variables), self.task.loss_kind)

    def start(self, batch_size: int) -> Carry:
        """Returns the carry before the first frame; only where ``causal``."""
        return None  # ``step`` makes it, once it knows the size of the frames.

    def step(self, carry: Carry, frames: np.ndarray) -> tuple[Carry, np.ndarray, np.ndarray]:
        """Reads one frame of each stream, see ``ClassifierFunctions``; only where ``causal``."""
        if carry is None:
            carry = self._start(self.variables, frames)
        carry, steps, clips = self._step(self.variables, carry, frames)
        return carry, np.asarray(steps), np.asarray(clips)


class LinenCaptioner:
    """Functions of a captioner of images: a Linen module and its variables."""

    def __init__(
        self, module: nn.Module, variables: Mapping[str, PyTree], options: SearchOptions
    ) -> None:
        """Compiles nothing yet.

        Args:
          module: a ``Captioner``, or one behind a ``FrozenEncoder``.
          variables: of the module.
          options: of the search.
        """
        self.module, self.variables = module, jax.device_put(dict(variables))
        self.options = options
        self._encode = _FrozenImages(module) if isinstance(module, FrozenEncoder) else None
        self._search = jax.jit(self.search, static_argnames=("beam_size",))
        self._attend = jax.jit(self.attend)

    def num_words(self, image_shape: tuple[int, int, int]) -> int:
        """Returns the number of logits; traces the decoder and so checks the variables."""
        images: Any = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
        if self._encode is not None:
            images = self._encode.eval_shape(self.variables, images)

        def first_logits(variables: PyTree, inputs: Array) -> Array:
            memory, carry = self.module.apply(variables, inputs, method="start_decoding")
            tokens = jnp.ones((1,), jnp.int32)
            stepped: Any = self.module.apply(variables, memory, carry, tokens, method="decode_step")
            logits: Array = stepped[1]
            return logits

        return int(jax.eval_shape(first_logits, self.variables, images).shape[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        # Compiled functions cannot be pickled, but made anew.
        return type(self), (self.module, jax.device_get(self.variables), self.options)

    def search(self, variables: PyTree, inputs: Array, beam_size: int) -> Hypotheses:
        """Returns the hypotheses (B,K,…) of images, or of features behind a frozen encoder.

        Traceable: an export lowers it.
        """
        started: Any = self.module.apply(variables, inputs, method="start_decoding")
        memory, carry = started

        def decode_step(carry: Carry, tokens: Array) -> tuple[Carry, Array]:
            stepped: Any = self.module.apply(variables, memory, carry, tokens, method="decode_step")
            return stepped[0], stepped[1]

        options = dataclasses.replace(self.options, beam_size=beam_size)
        key = jax.random.key(0) if options.method == "sample" else None
        return search_captions(decode_step, carry, options, key)

    def attend(
        self, variables: PyTree, inputs: Array, tokens: Array, lengths: Array
    ) -> Array | None:
        """Returns the attention (B,K,L,R) at each word of captions, teacher-forced; or None."""
        frozen = isinstance(self.module, FrozenEncoder)
        options: Any = {"method": "apply_network"} if frozen else {"train": False}
        outputs: Any = self.module.apply(variables, inputs, tokens, lengths, **options)
        attention: Array | None = outputs.attention
        return attention

    def caption(
        self, images: np.ndarray, num_captions: int = 1, *, attention: bool = False
    ) -> Captions:
        """Searches captions of images, see ``CaptionerFunctions``."""
        if num_captions < 1:
            raise ValueError(f"num_captions: expected at least 1, received {num_captions}")
        method = self.options.method
        if method != "beam" and num_captions > (
            self.options.num_samples if method == "sample" else 1
        ):
            raise ValueError(
                f"num_captions: expected 1 with the search {method}, received {num_captions}"
            )
        inputs = images if self._encode is None else self._encode(self.variables, images)
        beam_size = max(self.options.beam_size, num_captions)
        found = self._search(self.variables, inputs, beam_size=beam_size)
        tokens, lengths = found.tokens[:, :num_captions], found.lengths[:, :num_captions]
        weights: np.ndarray | None = None
        if attention:
            given = self._attend(self.variables, inputs, tokens, lengths)
            if given is None:
                raise ValueError(
                    "attention: expected False, since the model's decoder does not attend to "
                    "regions, received True"
                )
            weights = _as_grid(np.asarray(given), *np.shape(inputs)[1:3])
        return Captions(
            np.asarray(tokens),
            np.asarray(lengths),
            np.asarray(found.log_probs[:, :num_captions]),
            weights,
        )


class _FrozenImages:
    """Features of images by a frozen encoder, which encodes equal images once.

    Clips of one video overlap, and a padded batch repeats its last row.
    """

    def __init__(self, module: FrozenEncoder) -> None:
        # The activations of a few images fit into a CPU's caches.
        chunk = 2 if jax.default_backend() == "cpu" else 0
        self._encode = jax.jit(
            partial(module.clone(chunk_images=chunk).apply, method="encode"),
        )

    def eval_shape(self, variables: PyTree, frames: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """Returns shape and dtype of the features of frames (…,H,W,3)."""
        count = min(ENCODE_AT_ONCE, 1 << (math.prod(frames.shape[:-3]) - 1).bit_length())
        images = jax.ShapeDtypeStruct((count, *frames.shape[-3:]), frames.dtype)
        found = self._encode.eval_shape(variables, images)
        return jax.ShapeDtypeStruct((*frames.shape[:-3], *found.shape[1:]), found.dtype)

    def __call__(self, variables: PyTree, frames: np.ndarray) -> Array:
        """Returns the features (…,D) or (…,h,w,D) of frames (…,H,W,3) uint8."""
        images = np.ascontiguousarray(frames).reshape(-1, *frames.shape[-3:])
        rows: dict[bytes, int] = {}
        places = [rows.setdefault(image.tobytes(), len(rows)) for image in images]
        unique = np.array([places.index(row) for row in range(len(rows))])
        encoded = []
        for start in range(0, len(unique), ENCODE_AT_ONCE):
            part = images[unique[start : start + ENCODE_AT_ONCE]]
            size = 1 << (len(part) - 1).bit_length()
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
            encoded.append(self._encode(variables, padded)[: len(part)])
        features = jnp.concatenate(encoded)[np.array(places)]
        return features.reshape(*frames.shape[:-3], *features.shape[1:])


def _as_grid(attention: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns attention (B,K,L,R) over the positions of a map as (B,K,L,h,w).

    Args:
      attention: over R regions.
      height: of the image or map that was attended to, whose aspect ratio the positions have.
      width: of the same.
    """
    regions = attention.shape[-1]
    rows = round((regions * height / width) ** 0.5)
    if not rows or regions % rows:
        rows = 1
    return attention.reshape(*attention.shape[:-1], rows, regions // rows)
