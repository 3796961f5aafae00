"""The parameters of captioning decoders, made by name in their compact method ``weights``."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from flaxnets.typing import Array, Dtype


class DecoderParameters(nn.Module, kw_only=True):
    """What ``CaptionDecoder`` makes its parameters with; its attributes are described there."""

    vocabulary_size: int
    embed_features: int = 512
    tie_embeddings: bool = False
    param_dtype: Dtype = jnp.float32

    def param_affine(
        self, name: str, width: int, features: int, *, bias: bool = True
    ) -> dict[str, Array]:
        """``name_kernel`` (width, features), and ``name_bias``."""
        init = nn.initializers.lecun_normal()
        made = {
            f"{name}_kernel": self.param(
                f"{name}_kernel", init, (width, features), self.param_dtype
            )
        }
        if bias:
            zeros = nn.initializers.zeros
            made[f"{name}_bias"] = self.param(f"{name}_bias", zeros, (features,), self.param_dtype)
        return made

    def param_vector(self, name: str, features: int) -> Array:
        """(features,), of which inner products with tanh's values have a variance near 1."""
        init = nn.initializers.normal(features**-0.5)
        return self.param(name, init, (features,), self.param_dtype)

    def param_words(self, hidden_features: int) -> tuple[Array, dict[str, Array]]:
        """The embedding (V,E), and the affine map of hidden features to the vocabulary's scores.

        Raises:
          ValueError: tied embeddings of another width than the hidden features.
        """
        if self.tie_embeddings and hidden_features != self.embed_features:
            raise ValueError(
                f"tie_embeddings: expected embed_features of {hidden_features}, which the scores "
                f"are products with, received {self.embed_features}"
            )
        shape = self.vocabulary_size, self.embed_features
        init = nn.initializers.normal(self.embed_features**-0.5)
        embedding = self.param("embedding", init, shape, self.param_dtype)
        if not self.tie_embeddings:
            return embedding, self.param_affine("vocabulary", hidden_features, shape[0])
        bias = self.param("vocabulary_bias", nn.initializers.zeros, shape[:1], self.param_dtype)
        return embedding, {"vocabulary_kernel": embedding.T, "vocabulary_bias": bias}

    def check_width(self, width: int, *path: str, beside: int = 0) -> None:
        """Refuses regions of another width than that of the parameter at ``path``.

        Args:
          width: D of the regions.
          path: names of modules and of a kernel (D + ``beside``,...).
          beside: rows of the kernel that multiply something else.
        """
        found: Any = self.variables.get("params", {})
        for name in path:
            if name not in found:
                return
            found = found[name]
        if found.shape[0] != width + beside:
            raise ValueError(
                f"features: expected width {found.shape[0] - beside}, received {width}"
            )
