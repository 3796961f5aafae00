"""The captioner: an encoder of images or videos, and a decoder that puts them into words."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxnets.decoders.decoder import CaptionDecoder, CaptionOutputs, Memory
from flaxnets.models.frame_encoding import check_clips, encode_frames, unwrap_level
from flaxnets.typing import Array, Carry


class Captioner(nn.Module):
    """Images, videos or cached features to captions.

    What the decoder reads are regions: the places of an image's maps, or the steps of a video.

    Attributes:
      decoder: of ``flaxnets/decoders``.
      encoder: of images: (N,H,W,C) to maps (N,h,w,D) or vectors (N,D), or a dict of one of them,
        called with ``mask`` (N,) and ``train``. Of videos: (B,T,...) to (B,T,D), called with
        ``lengths``, ``mask`` and ``train``, as a ``CRNN`` without classifier. None: the inputs are
        features already.
      freeze_encoder: an encoder of images runs as in evaluation and gets no gradient; name it in
        ``optimizer.frozen`` too, or weight decay moves it. A CRNN has such an attribute of its own.
      freeze_statistics: an encoder of images runs as in evaluation, and its parameters train:
        fine-tuning with frozen BatchNorm.
      chunk_images: images that a frozen encoder sees at once; 0: all.
      feature_dropout_rate: on the channels of the regions: all regions of an image lose the same
        ones.
      region_dropout_rate: of regions, which are then as if they did not exist; where none would be
        left, all stay.
      region_features: units of a layer with rectifiers between the regions and the decoder, as the
        published code of Att2in and Up-Down has it; 0: none.
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
        """Makes the layer between."""
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
        """Scores of given captions' words, each after the words before it.

        Args:
          inputs: (B,H,W,C) images, uint8 or float as the encoder takes them; or features, float:
            (B,R,D), (B,h,w,D) or (B,D); or, with ``lengths``, a video (B,T,...).
          tokens: (B,C,L) int32 in [0,V): words, the end token, padding; no begin token.
          token_lengths: (B,C) int32 in [0,L], the end token included; 0: no such caption.
          lengths: (B,) int32 in [0,T], valid steps of a video; None: the inputs are no video.
          mask: (B,) bool, examples that count in batch statistics; None: all.
          train: whether dropout acts and batch statistics are those of the batch.
          image_dropout: whether ``feature_dropout_rate`` and ``region_dropout_rate`` act; None: in
            training.
          sampling_probability: scheduled sampling, see ``CaptionDecoder``.

        Raises:
          ValueError: inputs of another rank or dtype, or as ``CaptionDecoder``.
        """
        drop = train if image_dropout is None else image_dropout
        regions, exists = self._look(inputs, lengths, mask, train=train, drop=drop)
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
        """Encodes inputs and looks at them: memory and carry, pytrees of (B,...).

        Args:
          inputs: as ``__call__``'s.
          lengths: as ``__call__``'s.
          image_dropout: as ``__call__``'s; the same key ``dropout`` drops the same ones.
        """
        return self.decoder.start_decoding(
            *self._look(inputs, lengths, None, train=False, drop=image_dropout)
        )

    def decode_step(
        self, memory: Memory, carry: Carry, previous: Array
    ) -> tuple[Carry, Array, Array | None]:
        """Reads one word (B,) int32, first the begin token, and scores the next.

        Returns:
          The new carry, logits (B,V) float32, and attention (B,R) or None.
        """
        return self.decoder.decode_step(memory, carry, previous)

    def _look(
        self,
        inputs: Array,
        lengths: Array | None,
        mask: Array | None,
        *,
        train: bool,
        drop: bool,
    ) -> tuple[Array, Array | None]:
        """What the decoder reads: ``_encode``'s regions, dropped and through the layer between."""
        regions, exists = self._encode(inputs, lengths, mask, train=train)
        if self.feature_dropout_rate and drop:
            # Of ones, as large as a row's channels: the maps are float16 and many.
            kept = jnp.ones((len(regions), *(1,) * (regions.ndim - 2), regions.shape[-1]))
            kept = self.dropout(kept, deterministic=False)
            regions = regions * kept.astype(regions.dtype)
        regions = self._embed(regions)
        if self.region_dropout_rate and drop:
            exists = self._drop_regions(regions, exists)
        return regions, exists

    def _drop_regions(self, regions: Array, exists: Array | None) -> Array:
        """(B,R) bool of the regions that the decoder may look at."""
        if regions.ndim < 3:
            raise ValueError(
                "region_dropout_rate: expected 0 for regions without places, received "
                f"{self.region_dropout_rate} for {regions.shape}"
            )
        shape = len(regions), math.prod(regions.shape[1:-1])
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
        """Regions, (B,R,D), (B,h,w,D) or (B,D), and (B,R) bool of those that exist."""
        if lengths is not None:
            check_clips(inputs, lengths, mask, name="inputs")
            steps = inputs
            if self.encoder is not None:
                steps = self.encoder(inputs, lengths, mask, train=train)
            if steps.ndim != 3:
                raise ValueError(
                    f"inputs: expected a video that becomes (B,T,D), received {steps.shape}"
                )
            return steps, jnp.arange(steps.shape[1]) < jnp.asarray(lengths)[:, None]
        if self.encoder is None:
            return inputs, None
        if inputs.ndim != 4:
            raise ValueError(f"inputs: expected (B,H,W,C), received shape {inputs.shape}")
        maps = encode_frames(
            self.encoder,
            inputs[:, None],
            jnp.ones(len(inputs), jnp.int32),
            mask,
            train=train,
            chunk_frames=self.chunk_images,
            freeze_encoder=self.freeze_encoder,
            freeze_statistics=self.freeze_statistics,
        )
        return unwrap_level(maps, "encoder")[:, 0], None
