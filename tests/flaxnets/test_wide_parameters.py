"""Parameters wider than the arithmetic (float64, dtype float32) are cast, as Flax casts them."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.decoders.cells import MaxoutLSTMCell
from flaxnets.decoders.show_and_tell import FactoredLRCN, ShowAndTell
from flaxnets.decoders.show_attend_tell import Att2in, HardAttention, SoftAttention
from flaxnets.decoders.up_down import UpDown
from flaxnets.encoders.mobilenet_v2 import MobileNetV2
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.recurrent.cells import ElmanCell, GRUCell, LSTMCell
from flaxnets.recurrent.convolutional_cells import (
    ConvGRUCell,
    ConvLSTMCell,
    MinConvGRUCell,
    STLSTMCell,
)
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.linear_cells import LRUCell, MinGRUCell, MinLSTMCell
from flaxnets.recurrent.scan import ScanOptions

WIDE: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": jnp.float64}
VECTORS, MAPS = (2, 3, 4), (2, 3, 4, 4, 2)
CELLS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "Elman": (ElmanCell, VECTORS),
    "LSTM": (LSTMCell, VECTORS),
    "peepholes": (partial(LSTMCell, peepholes=True), VECTORS),
    "layer norm": (partial(LSTMCell, layer_norm=True), VECTORS),
    "projection": (partial(LSTMCell, projection_features=3), VECTORS),
    "GRU": (GRUCell, VECTORS),
    "reset before": (partial(GRUCell, reset_after=False), VECTORS),
    "minGRU": (MinGRUCell, VECTORS),
    "minLSTM": (MinLSTMCell, VECTORS),
    "LRU": (LRUCell, VECTORS),
    "ConvLSTM": (partial(ConvLSTMCell, peepholes=True), MAPS),
    "ConvGRU": (ConvGRUCell, MAPS),
    "ConvGRU, reset after": (partial(ConvGRUCell, reset_after=True), MAPS),
    "ST-LSTM": (STLSTMCell, MAPS),
    "minConvGRU": (MinConvGRUCell, MAPS),
}
KEYS = {name: jax.random.key(n) for n, name in enumerate(("params", "dropout", "sampling"))}


def check(module: nn.Module, inputs: Any, *others: Any) -> None:
    """Checks the dtypes of the outputs and of the gradients of parameters and inputs."""
    outputs, variables = jax.eval_shape(
        lambda: module.init_with_output(KEYS, inputs, *others, train=False)
    )
    rest = {name: tree for name, tree in variables.items() if name != "params"}

    def loss(params: Any, inputs: Any, rest: Any) -> Any:
        outputs, _ = module.apply(
            {"params": params, **rest}, inputs, *others, train=True, mutable=list(rest), rngs=KEYS
        )
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(outputs))

    gradients = jax.eval_shape(jax.grad(loss, argnums=(0, 1)), variables["params"], inputs, rest)
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients[0])} == {np.dtype(np.float64)}
    assert gradients[1].dtype == np.float32


@pytest.mark.parametrize("gradients", ["deferred", "autodiff"])
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_keeps_its_dtype(name: str, gradients: str) -> None:
    cell, shape = CELLS[name]
    with jax.enable_x64(True):
        layer = Recurrent(partial(cell, 4, **WIDE), options=ScanOptions(gradients=gradients))
        check(layer, jnp.ones(shape, jnp.float32))


@pytest.mark.parametrize(
    "decoder", [ShowAndTell, FactoredLRCN, SoftAttention, Att2in, HardAttention, UpDown]
)
def test_a_decoder_keeps_its_dtype(decoder: Any) -> None:
    cell = MaxoutLSTMCell if decoder is Att2in else GRUCell
    with jax.enable_x64(True):
        module = decoder(
            vocabulary_size=9, make_cell=partial(cell, 4, **WIDE), embed_features=5, **WIDE
        )
        tokens, lengths = jnp.ones((2, 1, 3), jnp.int32), jnp.full((2, 1), 3, jnp.int32)
        check(module, jnp.ones((2, 6, 7), jnp.float32), tokens, lengths)


@pytest.mark.parametrize("encoder", [partial(SmallCNN, (8,), (2,)), MobileNetV2])
def test_an_encoder_keeps_its_dtype(encoder: Any) -> None:
    with jax.enable_x64(True):
        check(encoder(**WIDE), jnp.ones((2, 32, 32, 3), jnp.float32))


def test_the_values_are_those_of_narrow_parameters() -> None:
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=VECTORS), jnp.float32)
        wide, narrow = (
            Recurrent(partial(LSTMCell, 4, peepholes=True, layer_norm=True, **dtypes))
            for dtypes in (WIDE, {"dtype": jnp.float32})
        )
        outputs, variables = jax.jit(partial(wide.init_with_output, train=False))(
            jax.random.key(0), x
        )
        cast = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), variables)
        np.testing.assert_allclose(outputs, narrow.apply(cast, x, train=False), atol=1e-6)
