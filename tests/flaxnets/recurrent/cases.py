"""Cells under test, each with a NumPy reference, and random parameters, carries and inputs."""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import rnn

from flaxnets.recurrent.cells import ElmanCell, GRUCell, LSTMCell
from flaxnets.recurrent.convolutional_cells import ConvGRUCell, ConvLSTMCell, STLSTMCell
from flaxnets.recurrent.scan import scan_cell
from tests.flaxnets.recurrent import reference

B, T, D, F, P = 3, 6, 5, 4, 3
MAP = (4, 3, 2)
LENGTHS = np.array([6, 4, 0], np.int32)
FULL = np.full(B, T, np.int32)
FLOAT64 = {"dtype": jnp.float64, "param_dtype": jnp.float64}


@dataclasses.dataclass(frozen=True)
class Case:
    """A cell and its NumPy reference."""

    name: str
    make_cell: Callable[..., Any]
    step: reference.Step
    axes: tuple[int, ...] = (D,)
    """Axes of an input after those of batch and time."""

    def __str__(self) -> str:
        return self.name

    def draw(self, seed: int = 0, steps: int = T) -> tuple[Any, Any, np.ndarray]:
        """Draws parameters, carry and inputs (B,steps,...), float64, none of them zero or one."""
        rng = np.random.default_rng(seed)
        params, carry = jax.tree.map(
            lambda x: rng.normal(0, 0.5, x.shape), make_shapes(self.make_cell, self.axes)
        )
        return params, carry, rng.normal(size=(B, steps, *self.axes))


@functools.cache
def make_shapes(make_cell: Callable[..., Any], axes: tuple[int, ...]) -> Any:
    """Returns the shapes of the parameters, and of the carry for inputs (B,*axes)."""

    def make() -> Any:
        cell = make_cell()
        init = partial(cell.init, method="weights")
        params = init(jax.random.key(0), (B, *axes))["params"]
        return params, cell.initialize_carry(None, (B, *axes))

    return jax.eval_shape(make)


def _maps(
    name: str, cell: Any, step: reference.Step, height: int, width: int, **options: Any
) -> Case:
    make_cell = partial(cell, F - 1, kernel_size=(height, width), **options)
    return Case(f"{name}-{height}x{width}", make_cell, step, MAP)


VECTORS = (
    Case("elman", partial(ElmanCell, F), reference.elman),
    Case(
        "irnn",
        partial(ElmanCell, F, activation=nn.relu),
        partial(reference.elman, activation=reference.relu),
    ),
    Case("lstm", partial(LSTMCell, F), reference.lstm),
    Case("lstm-peepholes", partial(LSTMCell, F, peepholes=True), reference.lstm),
    Case("lstm-norm", partial(LSTMCell, F, layer_norm=True), reference.lstm),
    Case("lstm-projection", partial(LSTMCell, F, projection_features=P), reference.lstm),
    Case(
        "lstm-all",
        partial(LSTMCell, F, peepholes=True, layer_norm=True, projection_features=P),
        reference.lstm,
    ),
    Case("gru-after", partial(GRUCell, F), reference.gru),
    Case("gru-before", partial(GRUCell, F, reset_after=False), reference.gru),
)
MAPS = (
    _maps("convlstm", ConvLSTMCell, reference.lstm, 3, 3),
    _maps("convlstm-peepholes", ConvLSTMCell, reference.lstm, 2, 3, peepholes=True),
    _maps("convgru-before", ConvGRUCell, reference.gru, 5, 5),
    _maps("convgru-before", ConvGRUCell, reference.gru, 2, 3),
    _maps("convgru-after", ConvGRUCell, reference.gru, 3, 2, reset_after=True),
    _maps("stlstm", STLSTMCell, reference.st_lstm, 3, 2),
)
CASES = VECTORS + MAPS
BY_NAME = {case.name: case for case in CASES}


def in_bfloat16(case: Case, arguments: Any) -> Any:
    """Casts parameters to float32, the carry to the cell's dtypes, inputs to bfloat16."""
    cell = case.make_cell(dtype=jnp.bfloat16)
    params, carry, x = arguments
    start = jax.eval_shape(lambda: cell.initialize_carry(None, (B, *case.axes)))
    carry = jax.tree.map(lambda c, like: np.asarray(c, like.dtype), carry, start)
    return jax.tree.map(np.float32, params), carry, np.asarray(x, jnp.bfloat16)


def call_scan(
    cell: Any,
    params: Any,
    carry: Any,
    inputs: Any,
    lengths: Any = None,
    mask: Any = None,
    **options: Any,
) -> Any:
    """Returns the carry and the outputs of ``scan_cell``."""
    return cell.apply(
        {"params": params},
        inputs,
        lengths,
        initial_carry=carry,
        hidden_mask=mask,
        method=scan_cell,
        **options,
    )


_compiled = jax.jit(call_scan, static_argnums=0, static_argnames=("reverse", "options"))
ON_CPU: dict[str, int | bool] = {"xla_backend_optimization_level": 3}
if jax.__version_info__ < (0, 11):
    ON_CPU["xla_cpu_use_fusion_emitters"] = True
optimized_jit = partial(
    jax.jit, compiler_options=ON_CPU if jax.default_backend() == "cpu" else None
)
"""``jax.jit`` with the optimisations that ``conftest.py`` turns off."""


def scan(*arguments: Any, **options: Any) -> Any:
    """Runs ``call_scan`` compiled and returns NumPy arrays, on which nothing is compiled."""
    return jax.device_get(_compiled(*arguments, **options))


def assert_close(actual: Any, expected: Any, **tolerance: float) -> None:
    """Compares two pytrees, structures included."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True
    ):
        a = np.asarray(a, np.result_type(np.float32, np.asarray(b).dtype))
        np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)


def cudnn_reference(x: Any, h: Any, c: Any, weights: Any, lengths: Any, *sizes: Any) -> Any:
    """Runs JAX's reference of ``jax.experimental.rnn.lstm``, on any platform."""
    d, f, num_layers, dropout, bidirectional = sizes
    assert weights.shape == (rnn.get_num_params_in_lstm(d, f, num_layers, bidirectional),)
    unpacked = rnn.unpack_lstm_weights(weights, d, f, num_layers, bidirectional)
    return rnn.lstm_ref(x, h, c, *unpacked, lengths, d, f, num_layers, dropout, bidirectional)
