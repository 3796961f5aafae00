"""Stacks of recurrent layers: LayerNorm between them, gated linear units, what is refused."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.config import RecurrentConfig, make_recurrent
from flaxnets.recurrent.layers import FrameAverage, Recurrent
from flaxnets.recurrent.linear_cells import LRUCell

B, T, D, F = 3, 6, 5, 4
LENGTHS = np.array([6, 4, 1], np.int32)
X = np.random.default_rng(0).normal(1, 3, size=(B, T, D)).astype(np.float32)


def make(layer: Recurrent) -> Any:
    """Returns random parameters, none of them constant."""
    shapes = jax.eval_shape(partial(layer.init, train=False), jax.random.key(0), X, LENGTHS)
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(np.float32), shapes)


def layer_norm(x: np.ndarray, params: Any) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * np.asarray(params["scale"]) + np.asarray(params["bias"])


def gated(x: np.ndarray, params: Any) -> np.ndarray:
    # flax.linen's GELU is the approximation by tanh.
    x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    values, gates = np.split(x @ np.asarray(params["kernel"]) + np.asarray(params["bias"]), 2, -1)
    return values / (1 + np.exp(-gates))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_stack_is_its_layers_one_after_the_other(bidirectional: bool) -> None:
    options: dict[str, Any] = {"bidirectional": bidirectional}
    width = F * (1 + bidirectional)
    stack = Recurrent(
        partial(LSTMCell, F),
        3,
        residual=True,
        normalize_layers=True,
        glu=True,
        layer_input_features=width,
        **options,
    )
    variables = make(stack)
    params = variables["params"]
    padding = np.arange(T) >= LENGTHS[:, None]
    x = np.where(padding[..., None], 0, X)
    for layer in range(3):
        if layer:
            x = x @ params[f"input_{layer}"]["kernel"] + params[f"input_{layer}"]["bias"]
            x = np.where(padding[..., None], 0, x)
        read = layer_norm(x, params[f"norm_{layer}"]) if layer else x
        cells = {
            f"{name}_0": params[f"{name}_{layer}"]
            for name in ("forward", "backward")[: 1 + bidirectional]
        }
        plain = Recurrent(partial(LSTMCell, F), **options)
        outputs = np.asarray(plain.apply({"params": cells}, read, LENGTHS, train=False))
        outputs = gated(outputs, params[f"glu_{layer}"])
        x = np.where(padding[..., None], 0, outputs + (x if layer else 0))
    np.testing.assert_allclose(stack.apply(variables, X, LENGTHS, train=False), x, atol=2e-5)


def test_stacked_lrus_are_linear_but_for_their_gated_linear_units() -> None:
    for glu in (False, True):
        layer = Recurrent(partial(LRUCell, F), num_layers=2, residual=True, glu=glu)
        variables = layer.init(jax.random.key(0), X, train=False)
        once, twice = (layer.apply(variables, scale * X, train=False) for scale in (1, 2))
        assert np.allclose(2 * once, twice, atol=1e-4) is not glu


def test_the_normalisation_of_a_single_feature_is_refused() -> None:
    # It would be the same whatever the inputs are, as the pixels of sequential MNIST.
    for layer in (
        Recurrent(partial(LSTMCell, F), normalize_inputs=True),
        FrameAverage(F, normalize_inputs=True),
    ):
        with pytest.raises(ValueError, match=r"normalize_inputs: expected .* at least 2 features"):
            layer.init(jax.random.key(0), X[..., :1], train=False)
    narrow = Recurrent(partial(LSTMCell, 1), num_layers=2, normalize_layers=True)
    with pytest.raises(ValueError, match=r"normalize_layers: expected .* at least 2 features"):
        narrow.init(jax.random.key(0), X, train=False)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dropout_rate", 0.3),
        ("residual", True),
        ("normalize_layers", True),
        ("layer_input_features", 4),
    ],
)
def test_what_acts_between_layers_is_named_where_there_is_one(
    field: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    config = RecurrentConfig("gru", features=4, num_layers=2, **{field: value})
    make_recurrent(config)
    assert not caplog.records
    make_recurrent(replace(config, num_layers=1), field="model.recurrent")
    (record,) = caplog.records
    assert record.getMessage().startswith(f"model.recurrent.{field}: {value} has no effect")


def test_dropout_above_a_dense_layer_is_not_named(caplog: pytest.LogCaptureFixture) -> None:
    make_recurrent(RecurrentConfig("gru", features=4, input_features=3, dropout_rate=0.3))
    assert not caplog.records
