"""3-D convolutional stem in front of a network of clips."""

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.configuration import check_dtype_argument
from flaxnets.encoders.encoder import normalize_pixels
from flaxnets.layers.padding import zero_padding
from flaxnets.layers.pooling import max_pool
from flaxnets.models.crnn import check_clips
from flaxnets.typing import Array, Dtype


class SpatioTemporalStem(nn.Module):
    """3-D convolution, LayerNorm, ReLU and max pooling over space, then a network of clips.

    The stem sees short motions of a few frames before the 2-D encoder of ``network`` looks at its
    feature maps one by one, and the recurrent layer at the whole clip (Stafylakis and
    Tzimiropoulos, "Combining Residual Networks with LSTMs for Lipreading", 1703.04105).

    Deviation: LayerNorm over the channels instead of BatchNorm, so that a clip depends neither on
    the others of its batch nor on padding.

    >>> import functools, jax
    >>> from flaxnets.encoders.small_cnn import SmallCNN
    >>> from flaxnets.heads.classifier import StepClassifier
    >>> from flaxnets.models.crnn import CRNN
    >>> network = CRNN(StepClassifier(5), encoder=SmallCNN((8,), (2,)))
    >>> model = SpatioTemporalStem(network, features=4)
    >>> video, lengths = jnp.zeros((2, 6, 32, 32, 3), jnp.uint8), jnp.array([6, 4])
    >>> init = functools.partial(model.init_with_output, train=False)
    >>> logits, variables = jax.eval_shape(init, jax.random.key(0), video, lengths)
    >>> logits.shape, variables["params"]["conv"]["kernel"].shape
    ((2, 6, 5), (5, 7, 7, 3, 4))

    Attributes:
      network: feature maps (B,T,h,w,F) float to logits, called with ``lengths``, ``mask`` and
        ``train``: a ``CRNN`` with an encoder.
      features: F, channels of the convolution.
      kernel_size: frames, rows and columns.
      strides: of the convolution over space; every frame keeps its step.
      pool: whether 3×3 max pooling with stride 2 over space follows.
      dtype: of the arithmetic and of the feature maps.
    """

    network: nn.Module
    features: int = 64
    kernel_size: tuple[int, int, int] = (5, 7, 7)
    strides: int = 2
    pool: bool = True
    dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        """Refuses the name of a dtype that does not exist."""
        check_dtype_argument(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, frames: Array, lengths: Array, mask: Array | None = None, *, train: bool
    ) -> Array:
        """Returns what ``network`` returns of the stem's feature maps.

        Args:
          frames: (B,T,H,W,C) uint8 in [0,255], or float in [-1,1].
          lengths: (B,) integers in [0,T], valid frames, an array or a list. Padded frames are read
            as the zeros that lie beyond the ends of any clip.
          mask: (B,) bool, clips that count in batch statistics of ``network``; None: all.
          train: whether this is a training step.

        Raises:
          ValueError: frames, lengths or mask of another rank or dtype.
        """
        if frames.ndim != 5:
            raise ValueError(f"frames: expected (B,T,H,W,C), received shape {frames.shape}")
        lengths = check_clips(frames, lengths, mask)
        x = zero_padding(normalize_pixels(frames, dtype=self.dtype), lengths)
        conv = nn.Conv(
            self.features,
            self.kernel_size,
            strides=(1, self.strides, self.strides),
            use_bias=False,
            dtype=self.dtype,
            name="conv",
        )
        x = nn.relu(nn.LayerNorm(dtype=self.dtype, name="norm")(conv(x)))
        if self.pool:
            b, t, *size = x.shape
            x = max_pool(x.reshape(b * t, *size), (3, 3), (2, 2), padding=1)
            x = x.reshape(b, t, *x.shape[1:])
        outputs: Array = self.network(zero_padding(x, lengths), lengths, mask, train=train)
        return outputs
