"""Causal convolutions over time: padding, packed sequences, streams, pooling, single channels."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.encoders.conv_stack import ConvStack
from flaxnets.encoders.sequence_config import SequenceEncoderConfig, make_sequence_encoder

B, T, D = 2, 7, 3
LENGTHS = jnp.array([T, 4])


def make(layer: ConvStack) -> tuple[Any, jax.Array]:
    x = jax.random.normal(jax.random.key(1), (B, T, D))
    return layer.init(jax.random.key(0), x, train=False), x


@pytest.mark.parametrize("per_channel", [False, True])
def test_packed_sequences_and_streams_equal_single_ones(per_channel: bool) -> None:
    layer = ConvStack((4, 5), kernel_size=3, per_channel=per_channel)
    variables, x = make(layer)
    apply = jax.jit(partial(layer.apply, train=False))
    starts = jnp.arange(T)[None] == jnp.array([[3], [0]])
    packed = apply(variables, x, starts=starts)
    whole = apply(variables, x)
    assert packed.shape == (B, T, D * 5 if per_channel else 5)
    np.testing.assert_allclose(packed[0, :3], whole[0, :3], atol=1e-6)
    np.testing.assert_allclose(packed[0, 3:], apply(variables, x[:, 3:])[0], atol=1e-6)
    np.testing.assert_allclose(packed[1], whole[1], atol=1e-6)
    stream = jax.jit(partial(layer.apply, method="stream"))
    carry, outputs = None, []
    for begin, end in ((0, 1), (1, 4), (4, T)):  # A chunk shorter than a kernel, too.
        result: Any = stream(variables, carry, x[:, begin:end])
        carry = result[0]
        outputs.append(result[1])
    np.testing.assert_allclose(jnp.concatenate(outputs, 1), whole, atol=1e-6)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("pools", [(), (2, 3)])
def test_no_steps_have_no_outputs(per_channel: bool, pools: tuple[int, ...]) -> None:
    layer = ConvStack((4, 5), per_channel=per_channel, pools=pools)
    variables, x = make(layer)
    outputs = layer.apply(variables, x[:, :0], train=False)
    assert outputs.shape == (B, 0, D * 5 if per_channel else 5)


def test_a_stream_of_kernels_of_one_step_takes_no_steps() -> None:
    layer = ConvStack((4,), kernel_size=1)
    variables, x = make(layer)
    starts = jnp.zeros((B, 0), bool)
    carry, outputs = layer.apply(variables, None, x[:, :0], starts=starts, method="stream")
    assert outputs.shape == (B, 0, 4)
    assert carry[0].shape == (B, 0, D)


@pytest.mark.parametrize("pools", [(), (2, 3)])
def test_padding_changes_neither_values_nor_gradients(pools: tuple[int, ...]) -> None:
    layer = ConvStack((4, 5), pools=pools)
    variables, x = make(layer)

    @jax.jit
    @jax.value_and_grad
    def loss(variables: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(layer.apply(variables, x, LENGTHS, train=True) ** 2)

    spoiled = x.at[1, 4:].set(jnp.nan)
    jax.tree.map(np.testing.assert_array_equal, loss(variables, x), loss(variables, spoiled))
    outputs = layer.apply(variables, x, LENGTHS, train=False)
    steps = -(-np.asarray(LENGTHS) // layer.stride)
    assert outputs.shape[1] == -(-T // layer.stride)
    alone = layer.apply(variables, x[1:, :4], train=False)
    np.testing.assert_allclose(outputs[1, : steps[1]], alone[0], atol=1e-6)
    assert not np.asarray(outputs[1, steps[1] :]).any()


def test_each_channel_is_convolved_alone() -> None:
    layer = ConvStack((4,), per_channel=True)
    variables, x = make(layer)
    changed = layer.apply(variables, x.at[:, :, 1].add(1.0), train=False)
    same = np.isclose(changed, layer.apply(variables, x, train=False)).all((0, 1))
    assert same.tolist() == [True] * 4 + [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "tcnn"}, "model.encoder.name: unknown 'tcnn'.*tcn"),
        ({"features": ()}, "model.encoder.features: expected at least one"),
        ({"pools": (2,)}, r"model.encoder.pools: expected a window .* of the 2"),
        ({"name": "tcn", "pools": (2, 2)}, "model.encoder.pools: 'tcn' has none"),
        ({"name": "tcn", "per_channel": True}, "model.encoder.per_channel: 'tcn' has none"),
        ({"kernel_size": 0}, "model.encoder.kernel_size: expected at least 1"),
    ],
)
def test_what_no_encoder_can_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_sequence_encoder(SequenceEncoderConfig(**{"name": "conv", **changes}))


def test_pools_cannot_be_streamed() -> None:
    layer = ConvStack((4,), pools=(2,))
    variables, x = make(layer)
    assert "pooled" in layer.obstacle
    with pytest.raises(ValueError, match="pools: expected none where starts or a carry are used"):
        layer.apply(variables, None, x, method="stream")
