"""Captioner: an encoder of images or videos, and a decoder that describes them in words.

Shapes on the way::

    inputs   images (B,H,W,C), a video (B,T,...) with lengths, or cached features
      → encoder   regions (B,R,D): the R = h·w positions of feature maps, or the T steps of a video
      → decoder   logits (B,C,L,V) of C captions of L words each, or one word at a time
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.decoders.decoder import CaptionDecoder, CaptionOutputs, Memory
from flaxnets.encoders.encoder import take_only_endpoint
from flaxnets.layers.padding import zero_where_masked
from flaxnets.models.crnn import check_clips, encode_frames
from flaxnets.typing import Array, Carry


class Captioner(nn.Module):
    """Captions of images, videos or cached features: an encoder, then a caption decoder.

    The decoder reads regions: the spatial positions of feature maps, or the steps of a video.

    >>> import functools
    >>> from flaxnets.decoders.show_attend_tell import SoftAttention
    >>> from flaxnets.encoders.small_cnn import SmallCNN
    >>> from flaxnets.recurrent.cells import LSTMCell
    >>> make_cell = functools.partial(LSTMCell, 32)
    >>> decoder = SoftAttention(
    ...     vocabulary_size=100, make_cell=make_cell, embed_features=16, attention_features=16
    ... )
    >>> model = Captioner(decoder, encoder=SmallCNN((8, 16), (2, 2)))
    >>> images = jnp.zeros((2, 16, 16, 3), jnp.uint8)
    >>> tokens, token_lengths = jnp.ones((2, 5, 7), jnp.int32), jnp.full((2, 5), 7)  # (B,C,L)
    >>> init = functools.partial(model.init_with_output, train=False)
    >>> outputs, _ = jax.eval_shape(init, jax.random.key(0), images, tokens, token_lengths)
    >>> outputs.logits.shape, outputs.attention.shape  # (B,C,L,V), (B,C,L,R)
    ((2, 5, 7, 100), (2, 5, 7, 16))

    Attributes:
      decoder: a decoder of ``flaxnets/decoders``.
      encoder: of images: (N,H,W,C) to feature maps (N,h,w,D) or vectors (N,D), or a dictionary of
        one endpoint, called with ``mask`` (N,) and ``train``. Of videos: (B,T,...) to (B,T,D),
        called with ``lengths``, ``mask`` and ``train``, as a ``CRNN`` without classifier. None: the
        inputs are features.
      freeze_encoder: whether an encoder of images runs as in evaluation and is not trained:
        ``make_train_step`` keeps it from weight decay, too. A ``CRNN`` has an attribute
        ``freeze_encoder`` of its own.
      freeze_statistics: whether an encoder of images runs as in evaluation while its parameters
        train: fine-tuning with frozen BatchNorm.
      chunk_images: images that an encoder with running statistics encodes at a time; 0: all.
      feature_dropout_rate: on the channels of the regions; all regions of an image lose the same
        channels.
      region_dropout_rate: of whole regions, which the decoder then does not see; if none were left,
        all stay.
      region_features: width of the Dense + ReLU layer applied to each region, as in the published
        code of Att2in and Up-Down; 0: none.
    """

    decoder: CaptionDecoder
    encoder: nn.Module | None = None
    freeze_encoder: bool = False
    freeze_statistics: bool = False
    chunk_images: int = 0
    feature_dropout_rate: float = 0.0
    region_dropout_rate: float = 0.0
    region_features: int = 0

    def setup(self) -> None:
        """Constructs the layer applied to each region, and the dropout of channels."""
        if self.region_features:
            self.embed_regions = nn.Dense(
                self.region_features, dtype=self.decoder.dtype, param_dtype=self.decoder.param_dtype
            )
        self.dropout = nn.Dropout(self.feature_dropout_rate)

    def __call__(
        self,
        inputs: Array,
        tokens: Array,
        token_lengths: Array,
        lengths: Array | None = None,
        mask: Array | None = None,
        *,
        train: bool,
        image_dropout: bool | None = None,
        sampling_probability: Array | float | None = None,
    ) -> CaptionOutputs:
        """Returns the logits of given captions by teacher forcing.

        Args:
          inputs: (B,H,W,C) images, uint8 or float as the encoder takes them; or features, float:
            (B,R,D), (B,h,w,D) or (B,D); or, with ``lengths``, a video (B,T,...).
          tokens: (B,C,L) int32 in [0,V): words, the end token, padding; no begin token.
          token_lengths: (B,C) integers in [0,L], with the end token; 0: no such caption.
          lengths: (B,) integers in [0,T], valid steps of a video; None: the inputs are no video.
          mask: (B,) bool, examples that count in batch statistics; None: all.
          train: whether dropout acts and batch statistics are those of the batch.
          image_dropout: whether ``feature_dropout_rate`` and ``region_dropout_rate`` act; None: as
            ``train``.
          sampling_probability: scheduled sampling, see ``CaptionDecoder``.

        Returns:
          Logits (B,C,L,V) float32 and attention weights (B,C,L,R) or None, see ``CaptionOutputs``.

        Raises:
          ValueError: inputs of another rank or dtype, or as for ``CaptionDecoder``.
        """
        drop = train if image_dropout is None else image_dropout
        regions, exists = self._read_regions(inputs, lengths, mask, train=train, drop=drop)
        return self.decoder(
            regions,
            tokens,
            token_lengths,
            exists,
            train=train,
            sampling_probability=sampling_probability,
        )

    def start_decoding(
        self, inputs: Array, lengths: Array | None = None, *, image_dropout: bool = False
    ) -> tuple[Memory, Carry]:
        """Encodes the inputs for decoding word by word.

        Args:
          inputs: as for ``__call__``.
          lengths: as for ``__call__``.
          image_dropout: as for ``__call__``; the same key ``dropout`` drops the same channels and
            regions.

        Returns:
          The memory that every step reads, and the first carry: pytrees of (B,...).
        """
        return self.decoder.start_decoding(
            *self._read_regions(inputs, lengths, None, train=False, drop=image_dropout)
        )

    def decode_step(
        self, memory: Memory, carry: Carry, previous: Array
    ) -> tuple[Carry, Array, Array | None]:
        """Reads one word and returns the logits of the next.

        Args:
          memory: as ``start_decoding`` returned it.
          carry: of the previous step.
          previous: (B,) int32, the previous word, at first the begin token.

        Returns:
          The new carry, logits (B,V) float32, and attention weights (B,R) float32 or None.
        """
        return self.decoder.decode_step(memory, carry, previous)

    def _read_regions(
        self,
        inputs: Array,
        lengths: Array | None,
        mask: Array | None,
        *,
        train: bool,
        drop: bool,
    ) -> tuple[Array, Array | None]:
        """Returns regions, dropped out and embedded, and (B,R) bool, those that exist."""
        regions, exists = self._encode(inputs, lengths, mask, train=train)
        if self.feature_dropout_rate and drop:
            # One mask per image and channel, broadcast over regions: a mask of the size of the
            # feature maps would double their memory.
            kept = jnp.ones((regions.shape[0], *(1,) * (regions.ndim - 2), regions.shape[-1]))
            kept = self.dropout(kept, deterministic=False)
            regions = regions * kept.astype(regions.dtype)
        regions = self._embed(regions)
        if self.region_dropout_rate and drop:
            exists = self._drop_regions(regions, exists)
        return regions, exists

    def _drop_regions(self, regions: Array, exists: Array | None) -> Array:
        """Returns (B,R) bool, the regions that remain."""
        if regions.ndim < 3:
            raise ValueError(
                "region_dropout_rate: expected 0 for one vector per image, received "
                f"{self.region_dropout_rate} for features of shape {regions.shape}"
            )
        shape = regions.shape[0], math.prod(regions.shape[1:-1])
        if exists is None:
            exists = jnp.ones(shape, bool)
        rate = 1 - self.region_dropout_rate
        left = exists & jax.random.bernoulli(self.make_rng("dropout"), rate, shape)
        return jnp.where(left.any(1, keepdims=True), left, exists)

    def _embed(self, regions: Array) -> Array:
        if not jnp.issubdtype(regions.dtype, jnp.floating):
            raise ValueError(f"inputs: expected float features, received {regions.dtype}")
        return nn.relu(self.embed_regions(regions)) if self.region_features else regions

    def _encode(
        self, inputs: Array, lengths: Array | None, mask: Array | None, *, train: bool
    ) -> tuple[Array, Array | None]:
        """Returns regions (B,R,D), (B,h,w,D) or (B,D), and (B,R) bool, those that exist."""
        if lengths is not None:
            lengths = check_clips(inputs, lengths, mask, name="inputs")
            steps = inputs
            if self.encoder is not None:
                steps = self.encoder(inputs, lengths, mask, train=train)
            if steps.ndim != 3:
                raise ValueError(
                    f"inputs: expected a video that becomes (B,T,D), received {steps.shape}"
                )
            exists = jnp.arange(steps.shape[1]) < lengths[:, None]
            return zero_where_masked(steps, exists), exists
        if self.encoder is None:
            return inputs, None
        if inputs.ndim != 4:
            raise ValueError(f"inputs: expected (B,H,W,C), received shape {inputs.shape}")
        maps = encode_frames(
            self.encoder,
            inputs[:, None],
            jnp.ones(inputs.shape[0], jnp.int32),
            mask,
            train=train,
            chunk_frames=self.chunk_images,
            freeze_encoder=self.freeze_encoder,
            freeze_statistics=self.freeze_statistics,
        )
        return take_only_endpoint(maps, "encoder")[:, 0], None
