"""Late fusion: independent networks side by side."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.heads.classifier import StepClassifier
from flaxnets.metrics import mutable_collections, split_reports
from flaxnets.models.crnn import CRNN
from flaxnets.models.late_fusion import LateFusion, StreamNetworks, StreamProjection
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.recurrent.newton_scan import NewtonScan
from flaxnets.recurrent.scan import ScanOptions

B, T, S, D, K = 3, 4, 2, 5, 3
MEMBERS = 2
LENGTHS = np.array([4, 2, 1], np.int32)


def make_network(dropout_rate: float = 0.0) -> CRNN:
    return CRNN(
        classifier=StepClassifier(K),
        recurrent=Recurrent(partial(LSTMCell, 4)),
        dropout_rate=dropout_rate,
    )


def initialize(model: nn.Module, frames: np.ndarray) -> Any:
    init = jax.jit(partial(model.init, train=False))
    return init(jax.random.key(0), frames, np.resize(LENGTHS, len(frames)))


@partial(jax.jit, static_argnums=0)
def run(model: nn.Module, variables: Any, frames: np.ndarray) -> Any:
    return model.apply(variables, frames, LENGTHS, train=False)


def apply(model: nn.Module, variables: Any, frames: np.ndarray) -> np.ndarray:
    return np.asarray(run(model, variables, frames))


class MaskedMean(nn.Module):
    """Network that stores the mean of the clips that count as a batch statistic."""

    @nn.compact
    def __call__(
        self, frames: jax.Array, lengths: jax.Array, mask: Any = None, *, train: bool
    ) -> jax.Array:
        mean = self.variable("batch_stats", "mean", jnp.zeros, frames.shape[-1])
        if train and not self.is_initializing():
            mean.value = jnp.mean(frames, axis=(0, 1), where=mask[:, None, None])
        return nn.Dense(K)(frames)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(B, T, S, D)).astype(np.float32)


@pytest.fixture(scope="module")
def projected(frames: np.ndarray) -> tuple[LateFusion, Any]:
    model = LateFusion(make_network(), MEMBERS, projection_features=4)
    variables = initialize(model, frames)
    # The bias is initialised to zero, where it would not be tested.
    bias = np.random.default_rng(1).normal(size=(S, 4)).astype(np.float32)
    projection = {**variables["params"]["projection"], "bias": jnp.asarray(bias)}
    return model, {"params": {**variables["params"], "projection": projection}}


def test_equals_the_networks_applied_one_by_one(
    frames: np.ndarray, projected: tuple[LateFusion, Any]
) -> None:
    model, variables = projected
    params = variables["params"]
    logits = apply(model, variables, frames)
    assert logits.shape == (B, T, S * MEMBERS, K)
    assert logits.dtype == jnp.float32
    kernel, bias = (np.asarray(params["projection"][name]) for name in ("kernel", "bias"))
    network = make_network()
    for stream in range(S):
        features = frames[:, :, stream] @ kernel[stream] + bias[stream]
        for member in range(MEMBERS):
            own = jax.tree.map(lambda leaf, s=stream, m=member: leaf[s, m], params["network"])
            expected = apply(network, {"params": own}, features)
            place = stream * MEMBERS + member
            np.testing.assert_allclose(logits[:, :, place], expected, atol=1e-5)


def test_a_network_reads_its_own_stream_only(
    frames: np.ndarray, projected: tuple[LateFusion, Any]
) -> None:
    model, variables = projected
    other = frames.copy()
    other[:, :, 1] += 1
    before, after = (apply(model, variables, x) for x in (frames, other))
    np.testing.assert_array_equal(before[:, :, :MEMBERS], after[:, :, :MEMBERS])
    changed = np.abs(before - after)[:, :, MEMBERS:].max((0, 1, 3))
    assert (changed > 1e-3).all()


def test_members_differ_in_their_parameters_and_logits(
    frames: np.ndarray, projected: tuple[LateFusion, Any]
) -> None:
    model, variables = projected
    kernels = np.asarray(variables["params"]["network"]["classifier"]["scores"]["kernel"])
    assert kernels.shape[:2] == (S, MEMBERS)
    networks = kernels.reshape(S * MEMBERS, *kernels.shape[2:])
    logits = np.moveaxis(apply(model, variables, frames), 2, 0)
    for a in range(S * MEMBERS):
        for b in range(a):
            assert np.abs(networks[a] - networks[b]).max() > 1e-2
            assert np.abs(logits[a] - logits[b]).max() > 1e-3


def test_each_member_is_initialised_as_a_single_network() -> None:
    wide = np.zeros((1, 1, 1, 400), np.float32)
    model = LateFusion(MaskedMean(), 3)
    kernel = initialize(model, wide)["params"]["network"]["Dense_0"]["kernel"][0]
    assert kernel.shape == (3, 400, K)
    # LeCun initialisation: variance 1/fan_in of one member.
    np.testing.assert_allclose(kernel.std((1, 2)), 400**-0.5, rtol=0.15)


def test_the_projection_is_a_linear_layer_of_each_stream(frames: np.ndarray) -> None:
    layer = StreamProjection(3)
    params = jax.eval_shape(layer.init, jax.random.key(0), frames)["params"]
    assert params["kernel"].shape == (S, D, 3)
    rng = np.random.default_rng(2)
    kernel, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((S, D, 3), (S, 3)))
    outputs = layer.apply({"params": {"kernel": kernel, "bias": bias}}, frames.astype(np.float16))
    assert outputs.dtype == jnp.float32
    expected = np.empty((B, T, S, 3))
    for stream in range(S):
        inputs = frames[:, :, stream].astype(np.float16).astype(np.float64)
        expected[:, :, stream] = inputs @ kernel[stream] + bias[stream]
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_the_projection_keeps_the_variance_at_initialisation() -> None:
    layer = StreamProjection(40)
    inputs = np.zeros((1, 1, 3, 500), np.float32)
    params = jax.jit(layer.init)(jax.random.key(0), inputs)["params"]
    np.testing.assert_allclose(np.std(params["kernel"], axis=(1, 2)), 500**-0.5, rtol=0.05)


def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(
    frames: np.ndarray, projected: tuple[LateFusion, Any]
) -> None:
    model, variables = projected

    @jax.jit
    @jax.grad
    def gradients(params: Any) -> Any:
        logits = model.apply({"params": params}, frames, LENGTHS, train=False)
        return jnp.sum(jnp.sin(logits))

    for path, gradient in jax.tree.leaves_with_path(gradients(variables["params"])):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(gradient).all(), name
        # Leading axes are streams and members: each has a gradient.
        leading = 1 if "projection" in name else 2
        assert np.abs(gradient).max(axis=tuple(range(leading, gradient.ndim))).all(), name


def test_dropout_differs_among_members_and_is_off_in_evaluation(frames: np.ndarray) -> None:
    model = LateFusion(make_network(dropout_rate=0.5), MEMBERS)
    shapes = jax.eval_shape(partial(initialize, model), frames)
    rng = np.random.default_rng(3)

    def repeated(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        return np.broadcast_to(rng.normal(size=leaf.shape[2:]).astype(np.float32), leaf.shape)

    # Equal parameters: members of a stream differ in their dropout only.
    same = jax.tree.map(repeated, shapes)

    @jax.jit
    def trained(variables: Any, key: jax.Array) -> Any:
        # Not closed over: JAX rejects NumPy constants that vmap passes into a custom vjp.
        return model.apply(variables, frames, LENGTHS, rngs={"dropout": key}, train=True)

    still = apply(model, same, frames)
    np.testing.assert_array_equal(still[:, :, 0], still[:, :, 1])
    first, other = (trained(same, jax.random.key(seed)) for seed in (0, 1))
    for member in range(0, S * MEMBERS, MEMBERS):
        assert np.abs(first[:, :, member] - first[:, :, member + 1]).max() > 1e-3
    assert np.abs(first - other).max() > 1e-3


def test_batch_statistics_are_kept_for_each_network_and_skip_masked_clips(
    frames: np.ndarray,
) -> None:
    model = LateFusion(MaskedMean(), MEMBERS)
    mask = np.array([True, False, True])
    variables = initialize(model, frames)
    _, updated = model.apply(variables, frames, LENGTHS, mask, train=True, mutable=["batch_stats"])
    for stream in range(S):
        mean = updated["batch_stats"]["network"]["mean"][stream]
        expected = frames[mask][:, :, stream].mean((0, 1))
        np.testing.assert_allclose(mean, np.broadcast_to(expected, (MEMBERS, D)), atol=1e-6)


@pytest.mark.parametrize("shape", [(B, T, D), (B, T, 2, 2, D)])
def test_frames_of_another_rank_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"frames: expected \(B,T,S,D\), received shape"):
        LateFusion(make_network()).init(
            jax.random.key(0), np.zeros(shape, np.float32), LENGTHS, train=False
        )


def test_networks_of_streams_read_their_own_input() -> None:
    model = StreamNetworks({"rgb": CRNN(StepClassifier(K)), "flow": CRNN(StepClassifier(K))})
    frames = {"rgb": jnp.ones((B, T, 2)), "flow": jnp.ones((B, T, 5))}
    variables = model.init(jax.random.key(0), frames, LENGTHS, train=False)
    apply = jax.jit(partial(model.apply, variables, train=False))
    before: Any = apply(frames, LENGTHS)
    assert before.shape == (B, T, 2, K)
    after: Any = apply({**frames, "flow": 2 * frames["flow"]}, LENGTHS)
    np.testing.assert_array_equal(before[:, :, 0], after[:, :, 0])
    assert (before[:, 0, 1] != after[:, 0, 1]).all()  # The first step is valid in each clip.
    with pytest.raises(ValueError, match="frames: expected rgb, flow, received rgb"):
        model.apply(variables, {"rgb": frames["rgb"]}, LENGTHS, train=False)


def test_parallel_scans_of_all_networks_are_reported(frames: np.ndarray) -> None:
    options = ScanOptions(parallel=NewtonScan(max_iterations=1))
    recurrent = Recurrent(partial(LSTMCell, 4), options=options)
    model = LateFusion(CRNN(classifier=StepClassifier(K), recurrent=recurrent), MEMBERS)
    variables = initialize(model, frames)
    assert set(variables) == {"params"}  # Reports are no part of the state of a training.
    run = jax.jit(partial(model.apply, train=False, mutable=mutable_collections(variables)))
    _, collections = run(variables, frames, LENGTHS)
    others, sums = split_reports(collections)
    assert others == {}
    assert {name: float(count) for name, (_, count) in sums.items()} == {
        "scan_iterations": S * MEMBERS * B,
        "scan_fallbacks": S * MEMBERS * B,
    }
