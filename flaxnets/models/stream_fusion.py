"""Several streams, seen or heard, joined at each step of time: two encoders, one recurrent head."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.models.crnn import average_over_space
from flaxnets.models.frame_encoding import check_clips, check_names
from flaxnets.typing import Array


class StreamFusion(nn.Module):
    """Features of each stream side by side, one recurrent layer and one classifier on them.

    A stream is any network from clips to features over time, as a ``CRNN`` without classifier: its
    own encoder, frozen, fine-tuned or trained, and, if wanted, a recurrent layer of its own. So an
    audio-visual CRNN is

        StreamFusion(
            streams={
                "video": CRNN(None, encoder=EfficientNetLite0(), freeze_encoder=True),
                "audio": CRNN(None, encoder=SmallCNN()),  # log-mel patches as images
            },
            recurrent=Recurrent(partial(LSTMCell, 256)),
            classifier=StepClassifier(K),
        )

    with a task that asks for ``inputs=("video", "audio")``, and RGB with frame differences is the
    same with two encoders of images. Streams whose predictions alone are to be averaged are
    ``LateFusion``'s.

    Modules are one set of parameters each, as everywhere in Linen: two streams that are given one
    instance share it.

    Attributes:
      streams: (B,T,...) to features (B,T,F), or maps (B,T,h,w,F) of one size, by the names of the
        inputs; called with ``lengths``, ``mask`` and ``train``. Joined in this order.
      classifier: (B,T,F) to scores (B,T,K) or (B,1,K), called with ``lengths`` and ``train``.
      recurrent: over the joined features; None: no time.
      dropout_rate: on the joined features.
      stream_dropout: probability with which a clip's whole stream is zero in training (the idea of
        ModDrop, Neverova et al., 1501.00102), so that the network learns to do without; the
        others are scaled up as by any dropout.
    """

    streams: Mapping[str, nn.Module]
    classifier: nn.Module
    recurrent: nn.Module | None = None
    dropout_rate: float = 0.0
    stream_dropout: float = 0.0

    @nn.compact
    def __call__(
        self,
        frames: Mapping[str, Array],
        lengths: Array,
        mask: Array | None = None,
        *,
        train: bool,
    ) -> Array:
        """Scores of each step, (B,T,K) float32, or of the clip, (B,1,K).

        Args:
          frames: (B,T,...) for each stream, as its network takes them.
          lengths: (B,) int32 in [0,T], valid steps of all streams.
          mask: (B,) bool, clips that count in batch statistics; None: all.
          train: whether dropout acts and batch statistics are those of the batch.

        Raises:
          ValueError: other streams than the network's, streams of different B, T or map sizes, or
            arguments of another rank, dtype or range.
        """
        if not isinstance(frames, Mapping):
            raise ValueError(f"frames: expected streams by name, received shape {frames.shape}")
        check_names("frames", self.streams, frames)
        clips = frames[next(iter(self.streams))].shape[:2]
        features: list[Array] = []
        for name, network in self.streams.items():
            stream = frames[name]
            if stream.shape[:2] != clips:
                raise ValueError(
                    f"frames[{name!r}]: expected (B,T) = {clips} as the other streams, "
                    f"received shape {stream.shape}"
                )
            check_clips(stream, lengths, mask, name=f"frames[{name!r}]")
            x = network(stream, lengths, mask, train=train)
            if features and x.shape[:-1] != features[0].shape[:-1]:
                raise ValueError(
                    f"streams[{name!r}]: expected features {(*features[0].shape[:-1], 'F')}, "
                    f"received shape {x.shape}"
                )
            whole = nn.Dropout(
                self.stream_dropout,
                broadcast_dims=tuple(range(1, x.ndim)),
                deterministic=not train,
                name=f"dropout_{name}",
            )
            features.append(whole(x))
        x = jnp.concatenate(features, axis=-1)  # (B,T,ΣF)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        if self.recurrent is not None:
            x = self.recurrent(x, lengths, train=train)
        return self.classifier(average_over_space(x), lengths, train=train)
