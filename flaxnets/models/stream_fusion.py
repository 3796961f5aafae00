"""Fusion of several streams, as video and audio, at each step of time."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.models.crnn import average_over_space, check_clips, check_names
from flaxnets.typing import Array


class StreamFusion(nn.Module):
    """Concatenated features of several streams, then one recurrent layer and one classifier.

    A stream is any network from clips to features over time, as a ``CRNN`` without classifier, with
    an encoder (frozen, fine-tuned or trained) and optionally a recurrent layer of its own. An
    audio-visual CRNN is

        StreamFusion(
            streams={
                "video": CRNN(None, encoder=EfficientNetLite0(), freeze_encoder=True),
                "audio": CRNN(None, encoder=SmallCNN()),  # log-mel patches as images
            },
            recurrent=Recurrent(partial(LSTMCell, 256)),
            classifier=StepClassifier(K),
        )

    with a task that has ``inputs=("video", "audio")``; RGB with frame differences is the same with
    two encoders of images. To average the predictions of streams instead, see ``LateFusion``.

    A Linen instance is one set of parameters: streams that are given the same instance share it.

    >>> import functools, jax
    >>> from flaxnets.heads.classifier import StepClassifier
    >>> from flaxnets.models.crnn import CRNN
    >>> model = StreamFusion({"video": CRNN(None), "audio": CRNN(None)}, StepClassifier(5))
    >>> frames = {"video": jnp.zeros((2, 6, 32)), "audio": jnp.zeros((2, 6, 8))}
    >>> init = functools.partial(model.init_with_output, train=False)
    >>> logits, variables = jax.eval_shape(init, jax.random.key(0), frames, jnp.array([6, 4]))
    >>> logits.shape, variables["params"]["classifier"]["scores"]["kernel"].shape
    ((2, 6, 5), (40, 5))

    Attributes:
      streams: networks by the names of the inputs, (B,T,...) to features (B,T,F), or feature maps
        (B,T,h,w,F) of one size h × w; called with ``lengths``, ``mask`` and ``train``. Features are
        concatenated in this order.
      classifier: (B,T,F) to logits (B,T,K) or (B,1,K), called with ``lengths`` and ``train``.
      recurrent: over the concatenated features; None: the identity.
      dropout_rate: on the concatenated features.
      stream_dropout: probability that a whole stream of a clip is zeroed in training (the idea of
        ModDrop, Neverova et al., 1501.00102), so that the network learns to work without it; the
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
        """Returns logits of the steps, (B,T,K) float32, or of the clips, (B,1,K).

        Args:
          frames: (B,T,...) by stream, as its network takes them.
          lengths: (B,) integers in [0,T], valid steps of all streams, an array or a list.
          mask: (B,) bool, clips that count in batch statistics; None: all.
          train: whether dropout acts and batch statistics are those of the batch.

        Raises:
          ValueError: streams other than those of ``streams``, of different B, T or feature map
            sizes, or arguments of another rank, dtype or range.
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
            lengths = check_clips(stream, lengths, mask, name=f"frames[{name!r}]")
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
