"""Several networks side by side on streams of features, fused by averaging their predictions."""

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.typing import Array, Dtype


class StreamProjection(nn.Module):
    """One affine map for each stream: the place of a principal component analysis.

    Attributes:
      features: P, width of the result.
    """

    features: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """(B,T,S,D) float to (B,T,S,P) float32; parameters ``kernel`` (S,D,P), ``bias`` (S,P)."""
        streams, width = inputs.shape[-2:]
        init = nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)
        kernel = self.param("kernel", init, (streams, width, self.features), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (streams, self.features), self.param_dtype)
        return jnp.einsum("btsd,sdp->btsp", inputs.astype(jnp.float32), kernel) + bias


class LateFusion(nn.Module):
    """Independent networks, ``members`` for each stream, whose predictions are averaged.

    Two streams fused late is LRCN's own way of combining RGB and flow (1411.4389, section 4.1);
    several members of a stream differ in their initial parameters and dropout alone.

    Attributes:
      network: one network, (B,T,P) features and ``lengths`` to scores (B,T,K); each stream and
        member has parameters of its own, with leading axes (S,members).
      members: networks for each stream.
      projection_features: P of the affine map before the networks, one for each stream; 0: none.
    """

    network: nn.Module
    members: int = 1
    projection_features: int = 0

    @nn.compact
    def __call__(
        self, frames: Array, lengths: Array, mask: Array | None = None, *, train: bool
    ) -> Array:
        """Scores of every network, (B,T,S·members,K) float32.

        Args:
          frames: (B,T,S,D) features of S streams.
          lengths: (B,) int32, valid steps.
          mask: (B,) bool, clips that count in batch statistics.
          train: whether dropout acts.

        Raises:
          ValueError: frames of another rank.
        """
        if frames.ndim != 4:
            raise ValueError(f"frames: expected (B,T,S,D), received shape {frames.shape}")
        x = frames
        if self.projection_features:
            x = StreamProjection(self.projection_features, name="projection")(x)

        def apply(network: nn.Module, stream: Array) -> Array:
            return network(stream, lengths, mask, train=train)

        for size, in_axes in ((self.members, None), (x.shape[2], 2)):
            apply = nn.vmap(
                apply,
                in_axes=in_axes,
                out_axes=2,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True, "dropout": True},
                axis_size=size,
            )
        scores = apply(self.network, x)  # (B,T,S,members,K)
        return scores.reshape(*scores.shape[:2], -1, scores.shape[-1])
