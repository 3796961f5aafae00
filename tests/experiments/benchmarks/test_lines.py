"""Benchmark of lines of text: both sides compute the same loss, gradient and update."""

from typing import Any

import jax
import numpy as np
import pytest

from experiments.benchmarks import lines
from experiments.benchmarks.run import run_cases
from flaxnets.models.column_crnn import make_column_crnn
from flaxnets.recurrent.torch_weights import from_torch
from flaxnets.tasks.ctc import CTC

K = 7


def test_lines_are_as_wide_as_asked_and_fit_their_texts() -> None:
    batch = lines.draw_batch(3, 48, 64, K)
    assert batch["image"].shape == (3, 48, 64, 1)
    assert (batch["lengths"] == 64).all()
    assert batch["tokens"].max() < K
    assert (batch["token_lengths"] * 2 <= 64 // 4).all()  # Even if all are repeated.
    for tokens, count in zip(batch["tokens"], batch["token_lengths"], strict=True):
        assert (tokens[:count] > 0).all()
        assert (tokens[count:] == 0).all()


@pytest.mark.stress
def test_steps_are_measured() -> None:
    results = run_cases(lines.cases(batch_size=2, width=64, num_classes=K), rounds=1, pause=0)
    assert len(results) == 2
    for row in results.values():
        assert next(iter(row)) == lines.OURS
        assert all(numbers["milliseconds"] > 0 for numbers in row.values())


def to_flax(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the parameters of our network that are those of ``torch_lines.Lines``."""
    names = [f"conv_{stage}_{i}" for stage in range(4) for i in range(1 if stage < 2 else 2)]
    numbers = sorted({int(name.split(".")[1]) for name in state if name.startswith("encoder.")})
    encoder: dict[str, Any] = {}
    convolutions = iter([*names, "conv_4"])
    name = ""
    for number in numbers:
        weight = state[f"encoder.{number}.weight"]
        if weight.ndim == 4:
            name = next(convolutions)
            encoder[name] = {"kernel": weight.transpose(2, 3, 1, 0)}
            if f"encoder.{number}.bias" in state:
                encoder[name]["bias"] = state[f"encoder.{number}.bias"]
        else:
            encoder[f"{name}_norm"] = {"scale": weight, "bias": state[f"encoder.{number}.bias"]}
    recurrent: dict[str, Any] = from_torch(state, prefix="recurrent.")
    if "projection.weight" in state:
        for name, layer in from_torch(state, prefix="upper.").items():
            recurrent[name.replace("_0", "_1")] = layer
        projection = state["projection.weight"].T
        recurrent["input_1"] = {"kernel": projection, "bias": state["projection.bias"]}
    return {
        "columns": {"encoder": encoder},
        "recurrent": recurrent,
        "classifier": {
            "scores": {"kernel": state["classes.weight"].T, "bias": state["classes.bias"]}
        },
    }


@pytest.mark.parametrize("variant", [None, "paper"])
def test_equal_weights_give_equal_losses_and_gradients(variant: str | None) -> None:
    torch = pytest.importorskip("torch")
    from experiments.benchmarks.torch_lines import Lines, TrainingStep

    config = lines.make_config(variant, dropout_rate=0.0)
    config.model.encoder.features, config.model.recurrent.features = (4, 4, 8, 8), 8
    if config.model.recurrent.layer_input_features:
        config.model.recurrent.layer_input_features = 5
    batch = lines.draw_batch(3, config.data.height, 64, K)
    options = lines.torch_options(config, K)
    of_step = [options.pop(name) for name in ("rate", "weight_decay", "clip_norm")]
    torch.manual_seed(0)
    peer = TrainingStep(Lines(**options), batch, *of_step)
    loss = peer.loss()
    loss.backward()
    named = dict(peer.network.named_parameters())
    params, expected = (
        to_flax({name: values(p).numpy().copy() for name, p in named.items()})
        for values in (lambda p: p.detach(), lambda p: p.grad)
    )

    model, task = make_column_crnn(config.model, K, config.data.height), CTC(text=str)
    variables = jax.device_get(task.initialize(model, jax.random.key(0), batch))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, variables["params"])

    @jax.jit
    @jax.value_and_grad
    def ours(params: Any) -> Any:
        sums, _ = task.loss(model, {**variables, "params": params}, batch, jax.random.key(0))
        return sums["loss"][0] / sums["loss"][1]

    value, gradient = ours(params)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    # PyTorch has two biases, each with the gradient of their sum.
    for name, layer in expected["recurrent"].items():
        layer["bias"] = layer["bias"] / (1 if name == "input_1" else 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient, expected
    )
