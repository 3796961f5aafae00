"""Layers, scans and captioners within ``jax.shard_map`` and under meshes of Explicit axes.

Values and gradients are those of the program on one device.
"""

import functools
from collections.abc import Callable, Container, Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from flaxnets.decoders.search import SearchOptions, search_captions
from flaxnets.decoders.show_and_tell import FactoredLRCN, ShowAndTell
from flaxnets.decoders.show_attend_tell import Att2in, HardAttention, SoftAttention
from flaxnets.decoders.up_down import UpDown
from flaxnets.layers import convolution
from flaxnets.layers.convolution import Conv
from flaxnets.layers.depthwise import DepthwiseConv
from flaxnets.layers.normalization import BatchNorm
from flaxnets.models.captioner import Captioner
from flaxnets.recurrent import (
    ConvGRUCell,
    ConvLSTMCell,
    ElmanCell,
    GRUCell,
    LRUCell,
    LSTMCell,
    MinGRUCell,
    MinLSTMCell,
    Recurrent,
    ScanOptions,
    matmul,
)
from flaxnets.recurrent.newton_scan import NewtonScan
from flaxnets.tasks.captioning import start_search
from flaxnets.tasks.cider import DocumentFrequencies, cider_d
from tests.flaxnets.meshes import make_mesh

DEVICES = 4
ROWS = 2 * DEVICES
KEY = jax.random.key(0)
Loss = Callable[..., Any]
"""(params, *batch) to the sum of a local batch's losses."""


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def layer_case(layer: nn.Module, *batch: Any, **settings: Any) -> tuple[Loss, Any, tuple[Any, ...]]:
    """Returns the loss of a layer, its parameters and a batch."""
    first = jax.tree.map(lambda x: x[:1], batch)
    variables = jax.jit(partial(layer.init, **settings))(KEY, *first)
    others = {name: tree for name, tree in variables.items() if name != "params"}

    def loss(params: Any, *batch: Any) -> Any:
        outputs = layer.apply(
            {"params": params, **others}, *batch, **settings, mutable=list(others) or False
        )
        outputs = outputs[0] if others else outputs
        outputs = getattr(outputs, "logits", outputs)
        return (jnp.sin(outputs) * outputs).sum()

    return loss, variables["params"], batch


def recurrence(cell: Any, *shape: int, **options: Any) -> tuple[Loss, Any, tuple[Any, ...]]:
    layer = Recurrent(cell, **options)
    lengths = np.arange(ROWS, dtype=np.int32) % 5 + 1
    return layer_case(layer, draw(ROWS, 5, *shape), lengths, train=False)


def captioner(decoder: Any, **options: Any) -> tuple[Loss, Any, tuple[Any, ...]]:
    decoder = decoder(
        vocabulary_size=11, make_cell=partial(LSTMCell, 4), embed_features=4, **options
    )
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 11, (ROWS, 2, 4)).astype(np.int32)
    lengths = rng.integers(1, 5, (ROWS, 2)).astype(np.int32)
    return layer_case(
        Captioner(decoder, region_features=6), draw(ROWS, 3, 5), tokens, lengths, train=False
    )


class Normalized(nn.Module):
    """BatchNorm over the global batch."""

    axis_name: str | None

    @nn.compact
    def __call__(self, x: Any, mask: Any) -> Any:
        x = BatchNorm(axis_name=self.axis_name)(x, mask, train=True)
        return nn.Dense(3)(x)


MASK = np.arange(ROWS) % 3 > 0
AUTODIFF = {"options": ScanOptions(gradients="autodiff")}
SCANS = {
    "Elman": partial(recurrence, partial(ElmanCell, 4), 3),
    "LSTM": partial(recurrence, partial(LSTMCell, 4, projection_features=3), 3, num_layers=2),
    "GRU": partial(recurrence, partial(GRUCell, 4), 3),
    "GRU both": partial(recurrence, partial(GRUCell, 4), 3, bidirectional=True),
    "LSTM autodiff": partial(recurrence, partial(LSTMCell, 4), 3, **AUTODIFF),
    "LSTM remat": partial(recurrence, partial(LSTMCell, 4), 3, options=ScanOptions(remat_steps=2)),
    "GRU truncated": partial(
        recurrence, partial(GRUCell, 4), 3, options=ScanOptions(truncate_steps=2)
    ),
    "LSTM Newton": partial(
        recurrence, partial(LSTMCell, 4), 3, options=ScanOptions(parallel=NewtonScan())
    ),
    "GRU quasi-Newton": partial(
        recurrence, partial(GRUCell, 4), 3, options=ScanOptions(parallel=NewtonScan("quasi_deer"))
    ),
    "ConvLSTM": partial(recurrence, partial(ConvLSTMCell, 3), 4, 4, 2),
    "ConvGRU": partial(recurrence, partial(ConvGRUCell, 3), 4, 4, 2),
    "minGRU": partial(recurrence, partial(MinGRUCell, 4), 3, bidirectional=True),
    "minGRU autodiff": partial(recurrence, partial(MinGRUCell, 4), 3, **AUTODIFF),
    "minLSTM": partial(recurrence, partial(MinLSTMCell, 4), 3),
    "LRU": partial(recurrence, partial(LRUCell, 4), 3),
    "LSTM of Flax": partial(recurrence, partial(nn.OptimizedLSTMCell, 4), 3, bidirectional=True),
    "GRU of Flax": partial(recurrence, partial(nn.GRUCell, 4), 3),
}
LAYERS = {
    "3×3 Winograd": partial(layer_case, Conv(32, (3, 3)), draw(ROWS, 14, 14, 32)),
    "3×3": partial(layer_case, Conv(4, (3, 3)), draw(ROWS, 6, 6, 3)),
    "stride 2": partial(layer_case, Conv(4, (3, 3), strides=2), draw(ROWS, 6, 6, 3)),
    "1×1": partial(layer_case, Conv(4, (1, 1)), draw(ROWS, 6, 6, 3)),
    "depthwise": partial(layer_case, DepthwiseConv(3, strides=2), draw(ROWS, 6, 6, 3)),
}
CAPTIONERS = {
    "Show and Tell": partial(captioner, ShowAndTell),
    "LRCN": partial(captioner, FactoredLRCN),
    "soft attention": partial(captioner, partial(SoftAttention, attention_features=4)),
    "soft autodiff": partial(
        captioner, partial(SoftAttention, attention_features=4), gradients="autodiff"
    ),
    "hard attention": partial(captioner, partial(HardAttention, attention_features=4)),
    "Att2in": partial(captioner, partial(Att2in, attention_features=4)),
    "UpDown": partial(captioner, partial(UpDown, attention_features=4)),
}
CASES = SCANS | LAYERS | CAPTIONERS
FAST = ("GRU", "ConvLSTM", "minGRU", "stride 2", "depthwise", "soft attention")


def mark_stress(names: Iterable[str], fast: Container[str]) -> list[Any]:
    """Returns parameters of a test, of which all but a few run on request only."""
    return [pytest.param(n, marks=[] if n in fast else pytest.mark.stress) for n in names]


def in_shard_map(loss: Loss, params: Any, batch: tuple[Any, ...]) -> Any:
    def share(params: Any, *batch: Any) -> Any:
        return jax.lax.psum(loss(params, *batch), "data")

    specs = P(), *[P("data")] * len(batch)
    sharded = jax.shard_map(share, mesh=make_mesh(DEVICES), in_specs=specs, out_specs=P())
    return jax.jit(jax.value_and_grad(sharded, argnums=(0, 1)))(params, *batch)


def on_explicit_axes(loss: Loss, params: Any, batch: tuple[Any, ...]) -> Any:
    with jax.set_mesh(make_mesh(DEVICES, AxisType.Explicit)):
        arguments = jax.device_put(params, P()), *jax.device_put(batch, P("data"))
        result = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*arguments)
    assert jax.typeof(result[1][1]).sharding.spec[0] == "data"
    return result


def assert_close(actual: Any, expected: Any) -> None:
    leaves = jax.tree.leaves(expected)
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    largest = max(np.abs(leaf).max() for leaf in leaves)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6 * largest),
        jax.device_get(actual),
        jax.device_get(expected),
    )


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("run", [in_shard_map, on_explicit_axes])
@pytest.mark.parametrize("name", mark_stress(CASES, FAST))
def test_equal_to_one_device(name: str, run: Callable[..., Any]) -> None:
    loss, params, batch, expected = reference(name)
    assert_close(run(loss, params, batch), expected)


@pytest.mark.parametrize("name", mark_stress(("GRU", "LSTM", "minGRU", "stride 2"), ("GRU",)))
def test_a_mesh_of_which_some_axes_are_manual(name: str) -> None:
    loss, params, batch, (_, (expected, *_)) = reference(name)
    devices = np.array(jax.devices()[:DEVICES]).reshape(2, 2)
    mesh = jax.sharding.Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def gradient(params: Any, *batch: Any) -> Any:
        return jax.grad(loss)(params, *batch)

    specs = P(), *[P("data")] * len(batch)
    sharded = jax.shard_map(gradient, mesh=mesh, in_specs=specs, out_specs=P(), axis_names={"data"})
    assert_close(jax.jit(sharded)(params, *batch), expected)


@functools.cache
def reference(name: str) -> tuple[Any, ...]:
    """Returns a case with its loss and gradients on one device."""
    loss, params, batch = CASES[name]()
    return loss, params, batch, jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, *batch)


@pytest.mark.parametrize("run", [in_shard_map, on_explicit_axes])
def test_batch_norm_of_the_global_batch(run: Callable[..., Any]) -> None:
    x = draw(ROWS, 3, 3, 4)
    loss, params, batch = layer_case(Normalized(None), x, MASK)
    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, *batch)
    name = "data" if run is in_shard_map else None
    sharded, _, _ = layer_case(Normalized(name), x, MASK)
    assert_close(run(sharded, params, batch), expected)


@pytest.mark.slow
def test_loops_over_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_CHUNKS", {3: 1, 5: 1})
    monkeypatch.setattr(convolution, "_CHUNK_SIZE", 1)
    monkeypatch.setattr(matmul, "_FEWEST_ROWS", 1)
    strided = nn.Sequential([Conv(32, (3, 3)), Conv(2, (1, 1)), Conv(2, (3, 3), strides=2)])
    loss, params, batch = layer_case(strided, draw(ROWS, 14, 14, 32))
    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, *batch)
    assert_close(in_shard_map(loss, params, batch), expected)

    def packed(kernel: Any, x: Any, mask: Any) -> Any:
        return jnp.sin(matmul.multiply_valid(x, kernel, mask)).sum()

    rows = draw(4, 3), (draw(ROWS, 5, 4), np.arange(5 * ROWS).reshape(ROWS, 5) % 3 > 0)
    with jax.sharding.use_abstract_mesh(make_mesh(1).abstract_mesh):
        expected = jax.jit(jax.value_and_grad(packed, argnums=(0, 1)))(rows[0], *rows[1])
    assert_close(in_shard_map(packed, *rows), expected)


def words_of(
    options: SearchOptions, decoder: Any
) -> tuple[Callable[..., Any], tuple[Any, np.ndarray]]:
    """Returns a search for captions of (variables, features), and its arguments."""
    make = partial(decoder, vocabulary_size=9, make_cell=partial(LSTMCell, 4), embed_features=4)
    model, features = Captioner(make()), draw(ROWS, 3, 5)
    tokens = np.ones((1, 1, 3), np.int32)
    init = jax.jit(partial(model.init, train=False))
    variables = init(KEY, features[:1], tokens, tokens[:, :, 0])

    def search(variables: Any, features: Any) -> Any:
        step, carry = start_search(model, variables, {"features": features})
        return search_captions(step, carry, options, key=KEY).tokens

    return search, (jax.tree.map(lambda x: x * 3, variables), features)


SEARCHES = {
    "greedy": SearchOptions(method="greedy", max_steps=4),
    "beam": SearchOptions(beam_size=4, num_groups=2, diversity_penalty=0.5, max_steps=4),
    "sample": SearchOptions(method="sample", top_k=3, top_p=0.9, max_steps=4),
}


@pytest.mark.parametrize(
    "decoder", mark_stress((FactoredLRCN, ShowAndTell, SoftAttention), (FactoredLRCN,))
)
@pytest.mark.parametrize("name", mark_stress(SEARCHES, ("beam", "sample")))
def test_searches_for_captions(name: str, decoder: Any) -> None:
    options = SEARCHES[name]
    search, arguments = words_of(options, decoder)
    specs = P(), P("data")
    sharded = jax.shard_map(search, mesh=make_mesh(DEVICES), in_specs=specs, out_specs=P("data"))
    found = jax.jit(sharded)(*arguments)
    if options.method != "sample":  # Every device draws with the same key.
        np.testing.assert_array_equal(found, jax.jit(search)(*arguments))
    assert found.shape[0] == ROWS
    assert len(np.unique(found.reshape(-1, 4), axis=0)) > 1


@pytest.mark.slow
@pytest.mark.parametrize("run", [in_shard_map, on_explicit_axes])
def test_scheduled_sampling_and_cider(run: Callable[..., Any]) -> None:
    decoder = FactoredLRCN(vocabulary_size=11, make_cell=partial(GRUCell, 4), embed_features=4)
    references = [np.array([[5, 4, 2]]), np.array([[7, 4, 3, 2]])]
    frequencies = DocumentFrequencies.count(references)
    tokens = np.random.default_rng(0).integers(2, 11, (ROWS, 1, 4)).astype(np.int32)
    batch = draw(ROWS, 5), tokens, np.full((ROWS, 1), 4, np.int32)
    variables = jax.jit(partial(decoder.init, train=False))(KEY, *batch)

    def loss(params: Any, *batch: Any) -> Any:
        logits = decoder.apply(
            params, *batch, train=False, sampling_probability=0.0, rngs={"sampling": KEY}
        ).logits
        rewards = 1.0 if run is on_explicit_axes else cider_d(frequencies, batch[1], batch[1]) + 1
        return (logits.max(-1).sum(-1) * rewards).sum()

    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, *batch)
    assert_close(run(loss, variables, batch), expected)
