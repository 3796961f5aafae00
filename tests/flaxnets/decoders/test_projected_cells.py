"""Every decoder takes a cell whose hidden state is narrower than its features."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.decoders.show_and_tell import FactoredLRCN, ShowAndTell
from flaxnets.decoders.show_attend_tell import Att2in, HardAttention, SoftAttention
from flaxnets.decoders.up_down import UpDown
from flaxnets.recurrent.cells import LSTMCell


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "decoder", [ShowAndTell, FactoredLRCN, SoftAttention, Att2in, HardAttention, UpDown]
)
def test_a_projected_lstm(decoder: Any, tied: bool) -> None:
    module = decoder(
        vocabulary_size=9,
        make_cell=partial(LSTMCell, 4, projection_features=3),
        embed_features=3 if tied else 5,
        tie_embeddings=tied,
    )
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(2, 3, 6)), jnp.float32)
    tokens, lengths = jnp.array([[[5, 4]], [[7, 2]]]), jnp.array([[2], [2]])

    @jax.jit
    def run(key: Any) -> Any:
        outputs, variables = module.init_with_output(key, features, tokens, lengths, train=False)
        memory, carry = module.apply(variables, features, method="start_decoding")
        logits = []
        for word in (jnp.ones(2, jnp.int32), tokens[:, 0, 0]):
            carry, step, _ = module.apply(variables, memory, carry, word, method="decode_step")
            logits.append(step)
        return outputs.logits[:, 0], jnp.stack(logits, 1), variables["params"]

    whole, steps, params = run(jax.random.key(0))
    np.testing.assert_allclose(whole, steps, atol=1e-6)
    if not tied:
        assert params["vocabulary_kernel"].shape[0] == (
            5 if decoder in (SoftAttention, HardAttention) else 3
        )
