"""Benchmark of sequences: both sides compute the same loss and hand the same carry on."""

from typing import Any

import jax
import numpy as np
import pytest

from experiments.benchmarks import sequences
from experiments.benchmarks.run import run_cases
from flaxnets.encoders.tcn import TCN
from flaxnets.models.sequence_model import SequenceModelConfig, make_sequence_model
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.recurrent.torch_weights import from_torch
from flaxnets.tasks.step_prediction import StepPrediction
from flaxnets.training.config import OptimizerConfig
from flaxnets.training.step import CARRY


@pytest.mark.stress
def test_steps_are_measured() -> None:
    cases = sequences.cases(20, 2, (2, 3, 4), ((9, 2, 4),), ((2, 9, 3, 2, 4, 2),))
    results = run_cases(cases, rounds=1, pause=0)
    assert len(results) == 6
    for row in results.values():
        assert next(iter(row)) == sequences.OURS
        assert all(numbers["milliseconds"] > 0 for numbers in row.values())


def to_flax(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns the parameters of our network that are those of ``torch_sequences.StepNetwork``."""
    params: dict[str, Any] = {
        "recurrent": from_torch(state, prefix="recurrent."),
        "head": {"scores": {"kernel": state["scores.weight"].T, "bias": state["scores.bias"]}},
    }
    if "embedding.weight" in state:
        params["embedding"] = {"embedding": state["embedding.weight"]}
    return params


@pytest.mark.parametrize("num_tokens", [7, 0])
def test_equal_weights_give_equal_losses_over_two_windows(num_tokens: int) -> None:
    torch = pytest.importorskip("torch")
    from experiments.benchmarks.torch_sequences import StepNetwork, TrainingStep

    config = SequenceModelConfig(
        recurrent=RecurrentConfig("lstm", features=5, num_layers=2), embedding_features=4
    )
    # PyTorch has two biases, each with the gradient of their sum, so that updates differ.
    optimizer = OptimizerConfig(name="sgd", momentum=0.0, learning_rate=0.0, clip_norm=0.1)
    outputs = num_tokens or sequences.KEYS
    batch = sequences.draw_tokens(3, 6, num_tokens) if num_tokens else sequences.draw_rolls(3, 6)
    torch.manual_seed(0)
    peer = TrainingStep(StepNetwork(config, outputs, num_tokens), batch, optimizer)
    model = make_sequence_model(config, outputs, num_tokens=num_tokens)
    task = StepPrediction("softmax" if num_tokens else "bernoulli", 3)
    ours = sequences.TrainingStep(model, task, optimizer, batch)
    state = {name: p.detach().numpy().copy() for name, p in peer.network.named_parameters()}
    params = jax.tree.map(np.asarray, to_flax(state))
    jax.tree.map(
        np.testing.assert_array_equal,
        *(jax.tree.map(np.shape, x) for x in (params, ours.variables["params"])),
    )
    ours.start_from(params)
    losses = [(ours(), peer()) for _ in range(3)]  # From the second on with a carry.
    assert losses[0][0] != losses[1][0]
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=2e-5)
    assert CARRY in ours.variables


def test_tcns_of_equal_weights_are_equal() -> None:
    torch = pytest.importorskip("torch")
    from experiments.benchmarks.torch_sequences import make_tcn

    x = np.random.default_rng(0).normal(size=(2, 40, 3)).astype(np.float32)
    features = (4, 4, 5)
    peer = make_tcn(3, features, 3)
    ours = TCN(features, 3)
    params = jax.device_get(ours.init(jax.random.key(0), x, train=False)["params"])
    for number, block in enumerate(peer):
        for index, conv in enumerate(block.convs):
            own = params[f"block_{number}_conv_{index}"]
            # PyTorch's convolution is (F,D,k) with g (F,1,1).
            with torch.no_grad():
                magnitude, direction = conv.parametrizations.weight.parameters()
                magnitude.copy_(torch.tensor(own["scale"])[:, None, None])
                direction.copy_(torch.tensor(own["kernel"].transpose(2, 1, 0)))
                conv.bias.zero_()
        if f"block_{number}_skip" in params:
            with torch.no_grad():
                own = params[f"block_{number}_skip"]
                block.skip.weight.copy_(torch.tensor(own["kernel"].T[..., None]))
                block.skip.bias.zero_()
    expected = peer(torch.tensor(x).transpose(1, 2)).transpose(1, 2).detach().numpy()
    y = ours.apply({"params": params}, x, train=False)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
