"""Sharded batches: each device computes its own rows and gathers no others."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flaxnets.decoders.show_and_tell import FactoredLRCN
from flaxnets.decoders.show_attend_tell import SoftAttention
from flaxnets.layers.batch_sharding import is_batch_known_sharded, is_batch_known_unsharded
from flaxnets.models.captioner import Captioner
from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.convolutional_cells import ConvLSTMCell, MinConvGRUCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.linear_cells import LRUCell, MinGRUCell
from tests.flaxnets.meshes import make_mesh, tracing_on

DEVICES = 4
KEY = jax.random.key(0)
CELLS = {
    "LSTM": partial(LSTMCell, 48, projection_features=32),
    "GRU": partial(GRUCell, 48),
    "ConvLSTM": partial(ConvLSTMCell, 8),
    "Conv minGRU": partial(MinConvGRUCell, 8),
    "minGRU": partial(MinGRUCell, 48),
    "LRU": partial(LRUCell, 48),
}
DECODERS = {"soft attention": partial(SoftAttention, attention_features=24), "LRCN": FactoredLRCN}


@pytest.mark.parametrize(
    ("num_devices", "kind"),
    [(1, AxisType.Auto), (8, AxisType.Auto), (8, AxisType.Explicit), (8, AxisType.Manual)],
)
def test_sharding_is_read_from_the_mesh(num_devices: int, kind: AxisType) -> None:
    # Without a mesh nothing is known: there are eight devices that arguments may be sharded over.
    assert not is_batch_known_sharded()
    assert not is_batch_known_unsharded()
    mesh = make_mesh(num_devices, kind)
    sharded = num_devices > 1 and kind != AxisType.Manual
    with tracing_on(mesh):
        assert is_batch_known_sharded() == sharded
        assert is_batch_known_unsharded() == (not sharded)


def recurrence(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns a loss of (variables, x, lengths) of a bidirectional layer, and its arguments."""
    layer = Recurrent(CELLS[name], bidirectional=True)
    shape = (32, 5, 8, 8, 6) if name.startswith("Conv") else (32, 12, 40)
    x = jax.random.normal(KEY, shape)
    lengths = jnp.arange(32) % shape[1] + 1
    variables = layer.init(KEY, x[:1], lengths[:1], train=False)

    def loss(variables: Any, x: Any, lengths: Any) -> Any:
        return jnp.mean(layer.apply(variables, x, lengths, train=False) ** 2)

    return loss, (variables, x, lengths)


def captioner(name: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Returns the same for a captioner with dropout."""
    decoder = DECODERS[name](vocabulary_size=60, make_cell=partial(LSTMCell, 32), embed_features=32)
    model = Captioner(decoder, region_features=24)
    regions = jax.random.normal(KEY, (32, 9, 20))
    tokens = jax.random.randint(KEY, (32, 2, 9), 4, 60)
    lengths = jnp.stack([jnp.arange(32) % 9 + 1, jnp.arange(32) % 5], axis=1)
    rows = regions[:1], tokens[:1], lengths[:1]
    variables = model.init(KEY, *rows, train=False)

    def loss(variables: Any, *batch: Any) -> Any:
        logits = model.apply(variables, *batch, train=True, rngs={"dropout": KEY}).logits
        counted = jnp.arange(9) < batch[2][..., None]
        return jnp.mean(jnp.where(counted[..., None], logits, 0) ** 2)

    return loss, (variables, regions, tokens, lengths)


CASES = [(recurrence, name) for name in CELLS] + [(captioner, name) for name in DECODERS]


@pytest.mark.slow_after(3)
@pytest.mark.parametrize(("make", "name"), CASES, ids=[name for _, name in CASES])
def test_each_device_computes_its_share_and_gathers_no_rows(make: Callable, name: str) -> None:
    loss, arguments = make(name)

    def compile_on(num_devices: int) -> Any:
        mesh = make_mesh(num_devices)
        rows, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

        def gradient(*arguments: Any) -> Any:
            with tracing_on(mesh):
                return jax.grad(loss)(*arguments)

        shardings = everywhere, *(rows for _ in arguments[1:])
        return (
            jax.jit(gradient, in_shardings=shardings, out_shardings=everywhere)
            .lower(*arguments)
            .compile()
        )

    sharded, whole = compile_on(DEVICES), compile_on(1)
    assert not re.findall(r"(?:all-gather|all-to-all|collective-permute)\S*\(", sharded.as_text())
    share = sharded.cost_analysis()["flops"] / whole.cost_analysis()["flops"]
    assert share == pytest.approx(1 / DEVICES, rel=0.05)
    gradients = [program(*jax.device_put(arguments)) for program in (sharded, whole)]
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradients[1]))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6 * largest), *gradients)
