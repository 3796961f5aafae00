"""cuDNN's LSTM behind the layer: the same outputs, carries and gradients from the same parameters.

Without a GPU JAX's reference of cuDNN's function replaces it, which unpacks the weights itself.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.linear_cells import MinGRUCell
from flaxnets.recurrent.scan import ScanOptions
from tests.flaxnets.recurrent.cases import assert_close, cudnn_reference

B, T, D, F = 4, 6, 5, 3
LENGTHS = np.array([6, 0, 4, 1], np.int32)
LSTM = partial(LSTMCell, F)
has_gpu = jax.default_backend() == "gpu"
needs_gpu = pytest.mark.skipif(not has_gpu, reason="cuDNN runs on GPUs, and there is none")


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces cuDNN's LSTM by ``lstm_ref``."""
    monkeypatch.setattr(rnn, "lstm", cudnn_reference)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def make(backend: str, **options: Any) -> Recurrent:
    return Recurrent(LSTM, backend=backend, **options)


def draw(layer: Recurrent, steps: int = T, width: int = D) -> tuple[Any, np.ndarray]:
    """Returns the layer, random parameters and inputs."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(B, steps, width)).astype(np.float32)
    shapes = jax.eval_shape(partial(layer.init, train=False), jax.random.key(0), x)
    return jax.tree.map(lambda p: rng.normal(0, 0.4, p.shape).astype(np.float32), shapes), x


def differentiate(layer: Recurrent, variables: Any, x: Any, lengths: Any, **call: Any) -> Any:
    """Returns the gradients in parameters and inputs, and the results."""

    def loss(variables: Any, x: Any) -> Any:
        results = layer.apply(variables, x, lengths, **call)
        leaves = jax.tree.leaves(results)
        return sum(((n + 1) * leaf**2).sum() for n, leaf in enumerate(leaves)), results

    return jax.device_get(jax.jit(jax.grad(loss, (0, 1), has_aux=True))(variables, x))


STACKS: tuple[dict[str, Any], ...] = (
    {},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "residual": True, "dropout_rate": 0.3, "normalize_inputs": True},
)


@pytest.mark.slow_after(3)
@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("options", STACKS, ids=str)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "masked"])
def test_values_and_gradients_are_those_of_the_scan(options: Any, lengths: Any) -> None:
    results = []
    for backend in ("scan", "cudnn"):
        layer = make(backend, **options)
        rngs = {"dropout": jax.random.key(0)}
        results.append(differentiate(layer, *draw(layer), lengths, train=True, rngs=rngs))
    assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)
    outputs = results[1][1]
    if lengths is not None:
        assert not outputs[np.arange(T) >= lengths[:, None]].any()


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "masked"])
def test_carries_go_in_and_come_out(lengths: Any) -> None:
    rng = np.random.default_rng(1)
    carry = {
        "cells": tuple(tuple(rng.normal(size=(2, B, F)).astype(np.float32)) for _ in range(2)),
        "inputs": None,
    }
    results = []
    for backend in ("scan", "cudnn"):
        layer = make(backend, num_layers=2)
        call = {"train": False, "initial_carry": carry, "return_carry": True}
        results.append(differentiate(layer, *draw(layer), lengths, **call))
    assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("reference")
def test_parameters_begin_the_same() -> None:
    x = np.zeros((1, 2, D), np.float32)
    layers = (make(backend) for backend in ("scan", "cudnn"))
    one, other = (
        jax.jit(partial(layer.init, train=False))(jax.random.key(0), x) for layer in layers
    )
    assert_close(one, other, rtol=0, atol=0)


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize(
    ("make_cell", "options", "match"),
    [
        (partial(GRUCell, F), {}, "make_cell: expected .*LSTMCell .*received .*GRUCell"),
        (partial(MinGRUCell, F), {}, "make_cell: expected .*LSTMCell .*received .*MinGRUCell"),
        (partial(LSTM, peepholes=True), {}, "peepholes: expected False .*received True"),
        (partial(LSTM, layer_norm=True), {}, "layer_norm: expected False .*received True"),
        (partial(LSTM, projection_features=2), {}, "projection_features: expected 0 .*received 2"),
        (partial(LSTM, dtype=jnp.bfloat16), {}, "^dtype: expected float32 .*received bfloat16"),
        (partial(LSTM, param_dtype=jnp.float16), {}, "param_dtype: expected float32 .*float16"),
        (LSTM, {"options": ScanOptions(remat_steps=2)}, "options: expected .*remat_steps=2"),
        (LSTM, {"recurrent_dropout_rate": 0.1}, "recurrent_dropout_rate: expected 0 .*0.1"),
    ],
)
def test_what_it_cannot_run_is_refused(make_cell: Any, options: Any, match: str) -> None:
    layer = Recurrent(make_cell, backend="cudnn", **options)
    with pytest.raises(ValueError, match=match):
        layer.init(jax.random.key(0), np.zeros((1, 2, D), np.float32), train=False)


@pytest.mark.usefixtures("reference")
def test_inputs_and_carries_it_cannot_take_are_refused() -> None:
    layer = make("cudnn")
    variables, x = draw(layer)
    with pytest.raises(ValueError, match=r"inputs: expected float32 .*received bfloat16"):
        layer.apply(variables, jnp.asarray(x, jnp.bfloat16), train=False)
    carry = {"cells": ((np.zeros((B, F)), np.zeros((B, F + 1), np.float32)),), "inputs": None}
    with pytest.raises(ValueError, match="initial_carry: expected"):
        layer.apply(variables, x, train=False, initial_carry=carry)


@pytest.mark.skipif(has_gpu, reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    layer = make("cudnn")
    with pytest.raises(
        ValueError, match="backend: expected 'scan' on the platform 'cpu', received"
    ):
        layer.init(jax.random.key(0), np.zeros((1, 2, D), np.float32), train=False)
    with pytest.raises(ValueError, match=r"backend: expected one of \('scan', 'cudnn'\).*'cuda'"):
        make("cuda").init(jax.random.key(0), np.zeros((1, 2, D), np.float32), train=False)


@pytest.mark.skipif(has_gpu, reason="there is a GPU")
def test_cudnn_itself_is_traced_with_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    # Only CUDA's library knows the size of what is stored for the gradient.
    name = "compute_rnn_workspace_reserve_space_sizes"
    monkeypatch.setattr(rnn.gpu_rnn, name, lambda *sizes: (0, 8), raising=False)
    layer = make("cudnn", num_layers=2, bidirectional=True)
    variables, x = draw(layer)

    def loss(variables: Any, x: Any) -> Any:
        return layer.apply(variables, x, LENGTHS, train=False).sum()

    traced = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(variables, x))
    assert traced.count("rnn_fwd") == 2
    assert traced.count("rnn_bwd") == 2


@needs_gpu
@pytest.mark.parametrize("options", STACKS, ids=str)
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "masked"])
def test_on_a_gpu_values_and_gradients_are_those_of_the_scan(options: Any, lengths: Any) -> None:
    results = []
    with jax.default_matmul_precision("highest"):
        for backend in ("scan", "cudnn"):
            layer = make(backend, **options)
            rngs = {"dropout": jax.random.key(0)}
            results.append(differentiate(layer, *draw(layer), lengths, train=True, rngs=rngs))
    assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
