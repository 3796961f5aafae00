"""Model of pixels from a network that was trained on the cached features of a frozen encoder."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.encoders.encoder import take_only_endpoint
from flaxnets.models.crnn import FEATURE_POOLS, encode_frames, pool_over_space
from flaxnets.typing import Array, Carry, Dtype


class FrozenEncoder(nn.Module):
    """Frozen encoder before a network on its features, as one function of pixels.

    For inference alone: training caches the features. ``encode`` and the network's own methods may
    be called one after the other.

    >>> import functools, jax
    >>> from flaxnets.encoders.small_cnn import SmallCNN
    >>> from flaxnets.heads.classifier import StepClassifier
    >>> from flaxnets.models.crnn import CRNN
    >>> model = FrozenEncoder(SmallCNN((8, 16), (2, 2)), CRNN(StepClassifier(5)), pool="max")
    >>> video, lengths = jnp.zeros((2, 6, 16, 16, 3), jnp.uint8), jnp.array([6, 4])
    >>> init = functools.partial(model.init_with_output, train=False)
    >>> logits, variables = jax.eval_shape(init, jax.random.key(0), video, lengths)
    >>> logits.shape, sorted(variables["params"])
    ((2, 6, 5), ['encoder', 'network'])

    Attributes:
      encoder: (N,H,W,3) uint8 to feature maps (N,h,w,D) or vectors (N,D), or a dictionary of one
        endpoint, called with ``mask`` (N,) and ``train``.
      network: called with features and further arguments.
      pool: of feature maps over space: ``max``, ``mean``, ``flatten``, which concatenates the
        positions, or ``none``; vectors pass as is.
      feature_dtype: to which features are rounded, as a cache did in training.
      chunk_images: images encoded at a time; 0: all. A few fit into the caches of a CPU.
    """

    encoder: nn.Module
    network: nn.Module
    pool: str = "none"
    feature_dtype: Dtype = jnp.float32
    chunk_images: int = 0

    def __call__(self, frames: Array, *arguments: Any, train: bool = False, **options: Any) -> Any:
        """Returns the network's outputs.

        Args:
          frames: (B,H,W,3), (B,T,H,W,3), or (B,T,S,H,W,3) of S streams, uint8 in [0,255].
          *arguments: of the network after the features, as lengths (B,).
          train: False.
          **options: of the network.

        Raises:
          ValueError: ``train``, or an unknown ``pool``.
        """
        if train:
            raise ValueError("train: expected False: training reads cached features, received True")
        return self.network(self.encode(frames), *arguments, train=False, **options)

    def encode(self, frames: Array) -> Array:
        """Returns the features of images with any leading axes, as ``__call__`` takes them.

        (…,H,W,3) becomes (…,D), or (…,h,w,D) with ``pool`` none.
        """
        if self.pool not in FEATURE_POOLS:
            raise ValueError(f"pool: expected one of {FEATURE_POOLS}, received {self.pool!r}")
        images = frames.reshape(-1, 1, *frames.shape[-3:])  # (N,1,H,W,3)
        outputs = encode_frames(
            self.encoder,
            images,
            jnp.ones(images.shape[0], jnp.int32),
            train=False,
            chunk_frames=self.chunk_images,
            freeze_encoder=True,
        )
        features = take_only_endpoint(outputs, "encoder")[:, 0]
        features = pool_over_space(features, self.pool)
        features = features.astype(self.feature_dtype)
        return features.reshape(*frames.shape[:-3], *features.shape[1:])

    def apply_network(self, features: Array, *arguments: Any, **options: Any) -> Any:
        """Returns the network's outputs for features that ``encode`` returned."""
        return self.network(features, *arguments, **options, train=False)

    @property
    def obstacle(self) -> str:
        """The reason why the model has no ``stream``; empty if it has."""
        if not hasattr(self.network, "stream"):
            return f"{type(self.network).__name__} has no stream"
        return str(getattr(self.network, "obstacle", ""))

    def stream(
        self, carry: Carry | None, frames: Array, lengths: Array | None = None
    ) -> tuple[Carry, Any]:
        """Returns the carry and logits of the next frames (B,T,H,W,3), see ``CRNN.stream``."""
        network: Any = self.network
        carry, logits = network.stream(carry, self.encode(frames), lengths)
        return carry, logits

    def start_decoding(self, features: Array) -> Any:
        """Returns memory and carry of a captioner, see ``Captioner.start_decoding``.

        Args:
          features: (B,h,w,D) or (B,D), as ``encode`` returned them.
        """
        network: Any = self.network
        return network.start_decoding(features)

    def decode_step(self, memory: Any, carry: Carry, previous: Array) -> Any:
        """Reads one word, see ``Captioner.decode_step``."""
        network: Any = self.network
        return network.decode_step(memory, carry, previous)
