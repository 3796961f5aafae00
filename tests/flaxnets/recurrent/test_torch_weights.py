"""Converted PyTorch parameters, against PyTorch's outputs, carries and gradients."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.recurrent.cells import ElmanCell, GRUCell, LSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.torch_weights import from_torch
from tests.flaxnets.recurrent.cases import assert_close
from tests.flaxnets.recurrent.record_torch import (
    FIXTURES,
    RECORDINGS,
    Recording,
    record,
)

F = 4
every_layer = pytest.mark.parametrize("name", RECORDINGS)


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"torch_{name}.npz") as file:
        return dict(file)


def part(recorded: dict[str, np.ndarray], folder: str) -> dict[str, np.ndarray]:
    return {k.split("/")[1]: v for k, v in recorded.items() if k.startswith(f"{folder}/")}


def make_layer(recording: Recording, features: int, dtype: Any, **options: Any) -> Recurrent:
    make_cell = partial(recording.cell, features, dtype=dtype, param_dtype=dtype)
    own = {k: v for k, v in recording.options.items() if k in ("num_layers", "bidirectional")}
    return Recurrent(make_cell, **own, **options)


def gradients_as_parameters(recording: Recording, recorded: dict[str, np.ndarray]) -> Any:
    """Converts PyTorch's gradients; each of two summed biases has the gradient of the sum."""
    gradients = part(recorded, "gradients")
    for name, gradient in gradients.items():
        if name.startswith("bias_hh"):
            # A GRU's candidate has a second bias, hidden_bias.
            own = 2 * len(gradient) // 3 if recording.torch_name == "GRU" else len(gradient)
            gradient[:own] = 0
    return from_torch(gradients)


def assert_near(actual: Any, expected: Any, tolerance: float) -> None:
    """Compares relative to the largest value of an array, or to 1 if that is smaller."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.abs(a - b).max() <= tolerance * max(1, np.abs(b).max())


def check(
    recording: Recording, recorded: dict[str, np.ndarray], features: int, tolerance: float
) -> None:
    """Returns outputs and gradients."""
    x, lengths = recorded["inputs"], recorded["lengths"]
    layer = make_layer(recording, features, x.dtype)
    params = from_torch(part(recorded, "state"))

    @jax.jit
    @partial(jax.grad, argnums=(0, 1), has_aux=True)
    def differentiate(params: Any, x: Any) -> Any:
        outputs = layer.apply({"params": params}, x, lengths, train=False)
        return (outputs * recorded["weights"]).sum(), outputs

    gradients, outputs = jax.device_get(differentiate(params, x))
    assert outputs.dtype == x.dtype
    assert_near(outputs, recorded["outputs"], tolerance)
    assert_near(gradients[1], recorded["of_inputs"], tolerance)
    expected = gradients_as_parameters(recording, recorded)
    if not recording.options.get("bias", True):
        for own in gradients[0].values():
            own["bias"] = np.zeros_like(own["bias"])
    assert_near(gradients[0], expected, tolerance)


@every_layer
def test_recorded_outputs_and_gradients(name: str) -> None:
    with jax.enable_x64(True):
        check(RECORDINGS[name], load(name), F, 1e-11)


@every_layer
def test_recorded_outputs_in_float32(name: str) -> None:
    recorded = {
        k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in load(name).items()
    }
    layer = make_layer(RECORDINGS[name], F, jnp.float32)
    params = from_torch(part(recorded, "state"))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    apply = jax.jit(partial(layer.apply, train=False))
    outputs = apply({"params": params}, recorded["inputs"], recorded["lengths"])
    assert_near(outputs, recorded["outputs"], 1e-5)


def test_recorded_carries_at_each_end() -> None:
    recorded = load("lstm_no_bias")
    with jax.enable_x64(True):
        layer = make_layer(RECORDINGS["lstm_no_bias"], F, jnp.float64)
        apply = jax.jit(partial(layer.apply, train=False, return_carry=True))
        params = from_torch(part(recorded, "state"))
        carry, _ = apply({"params": params}, recorded["inputs"], recorded["lengths"])
    for number, (cell, hidden) in enumerate(carry["cells"]):
        np.testing.assert_allclose(cell, recorded["cell"][number], rtol=1e-9)
        np.testing.assert_allclose(hidden, recorded["hidden"][number], rtol=1e-9)


@every_layer
def test_parameters_are_those_of_the_layer(name: str) -> None:
    layer = make_layer(RECORDINGS[name], F, jnp.float32)
    x = jax.ShapeDtypeStruct((1, 2, 5), jnp.float32)
    expected = jax.eval_shape(partial(layer.init, train=False), jax.random.key(0), x)["params"]
    actual = from_torch(part(load(name), "state"))
    assert jax.tree.map(np.shape, actual) == jax.tree.map(np.shape, expected)


@every_layer
def test_live_pytorch(name: str) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    live, recorded = record(RECORDINGS[name]), load(name)
    assert live.keys() == recorded.keys()
    for key, value in live.items():
        np.testing.assert_allclose(value, recorded[key], rtol=1e-9, atol=1e-11, err_msg=key)
    larger = record(
        RECORDINGS[name], inputs=24, features=32, lengths=(40, 17, 1, 33), dtype=np.float32
    )
    check(RECORDINGS[name], larger, 32, 1e-5)


def test_names_may_have_a_prefix_and_stand_beside_others() -> None:
    state = part(load("gru"), "state")
    nested = {f"model.rnn.{name}": value for name, value in state.items()}
    nested["model.head.weight"] = np.zeros((2, 8))
    assert_close(from_torch(nested, prefix="model.rnn."), from_torch(state, GRUCell), rtol=0)


def test_what_is_missing_unused_or_misshapen_is_listed() -> None:
    state = part(load("lstm"), "state")
    del state["weight_hh_l1"], state["bias_ih_l0_reverse"]
    state["weight_hr_l0_reverse"] = np.zeros((3, 4))
    state["weight_ih_l1"] = state["weight_ih_l1"][:, :4]
    with pytest.raises(ValueError, match="state: ") as error:
        from_torch({f"rnn.{name}": value for name, value in state.items()}, prefix="rnn.")
    assert set(str(error.value).removeprefix("state: ").split("; ")) == {
        "rnn.weight_hh_l1: missing",
        "rnn.bias_ih_l0_reverse: missing",
        "rnn.weight_hr_l0_reverse: not used",
        "rnn.weight_ih_l1: expected shape (16, 8), received (16, 4)",
    }
    with pytest.raises(ValueError, match=r"state: expected \['x.weight_ih_l0', 'x.weight_hh_l0'\]"):
        from_torch(state, prefix="x.")


@pytest.mark.parametrize(
    ("name", "cell", "kind"),
    [("lstm", GRUCell, "LSTMCell"), ("gru", LSTMCell, "GRUCell"), ("rnn_relu", GRUCell, "Elman")],
)
def test_another_kind_of_cell_is_refused(name: str, cell: type, kind: str) -> None:
    match = (
        f"cell: expected {kind}.*torch.nn.{RECORDINGS[name].torch_name}, received {cell.__name__}"
    )
    with pytest.raises(ValueError, match=match):
        from_torch(part(load(name), "state"), cell)


def test_kernels_that_are_of_no_cell_are_refused() -> None:
    state: dict[str, Any] = {"weight_ih_l0": np.zeros((8, 5)), "weight_hh_l0": np.zeros((8, 4))}
    with pytest.raises(ValueError, match=r"weight_hh_l0: expected 4 \(LSTM\).* 4 rows, received 8"):
        from_torch(state)
    state["weight_hh_l0"] = np.zeros(4)
    with pytest.raises(ValueError, match=r"weight_hh_l0: expected a matrix, received shape \(4,\)"):
        from_torch(state, ElmanCell)
