"""Late fusion: independent networks on streams of features, whose predictions are averaged."""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.layers.padding import check_lengths, zero_padding
from flaxnets.models.crnn import check_names
from flaxnets.typing import SCAN_REPORTS, Array, Dtype


class StreamProjection(nn.Module):
    """One linear layer for each stream, a learned alternative to a principal component analysis.

    Attributes:
      features: P, width of the outputs.
      param_dtype: of the parameters.
    """

    features: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps (B,T,S,D) to (B,T,S,P), float32 at least, by ``kernel`` (S,D,P), ``bias`` (S,P)."""
        streams, width = inputs.shape[-2:]
        init = nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)
        kernel = self.param("kernel", init, (streams, width, self.features), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (streams, self.features), self.param_dtype)
        x = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        return jnp.einsum("btsd,sdp->btsp", x, kernel) + bias


class LateFusion(nn.Module):
    """Ensemble of independent networks, ``members`` for each of S streams.

    Fusing two streams late is how LRCN combines RGB and flow (1411.4389, section 4.1). Members of
    one stream differ in their initial parameters and dropout alone. The task trains each network on
    its own loss and averages their probabilities.

    >>> import functools, jax
    >>> from flaxnets.heads.classifier import StepClassifier
    >>> from flaxnets.models.crnn import CRNN
    >>> model = LateFusion(CRNN(StepClassifier(5)), members=3)
    >>> features, lengths = jnp.zeros((2, 6, 2, 16)), jnp.array([6, 4])  # (B,T,S,D)
    >>> init = functools.partial(model.init_with_output, train=False)
    >>> logits, _ = jax.eval_shape(init, jax.random.key(0), features, lengths)
    >>> logits.shape  # (B,T,S·members,K)
    (2, 6, 6, 5)

    Attributes:
      network: one network, features (B,T,P) and ``lengths`` to logits (B,T,K); the parameters of
        all streams and members are stacked along leading axes (S,members).
      members: networks for each stream.
      projection_features: P of a linear layer before the networks, one for each stream; 0: none.
    """

    network: nn.Module
    members: int = 1
    projection_features: int = 0

    @nn.compact
    def __call__(
        self, frames: Array, lengths: Array, mask: Array | None = None, *, train: bool
    ) -> Array:
        """Returns logits of every network, (B,T,S·members,K) float32, members of a stream adjacent.

        Args:
          frames: (B,T,S,D) float, features of S streams.
          lengths: (B,) integers in [0,T], valid steps of all streams, an array or a list.
          mask: (B,) bool, clips that count in batch statistics; None: all.
          train: whether dropout acts.

        Raises:
          ValueError: frames of another rank, lengths of another shape, dtype or range.
        """
        if frames.ndim != 4:
            raise ValueError(f"frames: expected (B,T,S,D), received shape {frames.shape}")
        lengths = check_lengths(lengths, *frames.shape[:2])
        x = frames
        if self.projection_features:
            x = zero_padding(x, lengths)  # The networks do so themselves.
            x = StreamProjection(self.projection_features, name="projection")(x)

        def apply(network: nn.Module, stream: Array) -> Array:
            return network(stream, lengths, mask, train=train)

        for size, in_axes in ((self.members, None), (x.shape[2], 2)):
            apply = nn.vmap(
                apply,
                in_axes=in_axes,
                out_axes=2,
                variable_axes={"params": 0, "batch_stats": 0, SCAN_REPORTS: 0},
                split_rngs={"params": True, "dropout": True},
                axis_size=size,
            )
        logits = apply(self.network, x)  # (B,T,S,members,K)
        members = logits.shape[2] * logits.shape[3]
        return logits.reshape(*logits.shape[:2], members, logits.shape[-1])


class StreamNetworks(nn.Module):
    """Networks of their own for several inputs, as RGB and flow; the task averages their outputs.

    ``LateFusion`` is faster for features of one width; here every stream has its own network, on
    frames, feature maps or vectors.

    >>> import functools, jax
    >>> from flaxnets.heads.classifier import StepClassifier
    >>> from flaxnets.models.crnn import CRNN
    >>> model = StreamNetworks({"rgb": CRNN(StepClassifier(5)), "flow": CRNN(StepClassifier(5))})
    >>> frames = {"rgb": jnp.zeros((2, 6, 16)), "flow": jnp.zeros((2, 6, 8))}
    >>> init = functools.partial(model.init_with_output, train=False)
    >>> logits, variables = jax.eval_shape(init, jax.random.key(0), frames, jnp.array([6, 4]))
    >>> logits.shape, sorted(variables["params"])
    ((2, 6, 2, 5), ['networks_flow', 'networks_rgb'])

    Attributes:
      networks: by the names of the inputs, (B,T,...) to logits (B,T,K), or all to (B,1,K); called
        with ``lengths``, ``mask`` and ``train``.
    """

    networks: Mapping[str, nn.Module]

    def __call__(
        self,
        frames: Mapping[str, Array],
        lengths: Array,
        mask: Array | None = None,
        *,
        train: bool,
    ) -> Array:
        """Returns logits of every network, (B,T,M,K) or (B,1,M,K) float32, in their order.

        Args:
          frames: (B,T,...) by name, as each network takes them.
          lengths: (B,) integers in [0,T], valid steps of all inputs, an array or a list.
          mask: (B,) bool, clips that count in batch statistics; None: all.
          train: whether this is a training step.

        Raises:
          ValueError: inputs other than those of ``networks``, or as the networks.
        """
        if not isinstance(frames, Mapping):
            raise ValueError(f"frames: expected inputs by name, received shape {frames.shape}")
        check_names("frames", self.networks, frames)
        logits = [
            network(frames[name], lengths, mask, train=train)
            for name, network in self.networks.items()
        ]
        return jnp.stack(logits, axis=2)
