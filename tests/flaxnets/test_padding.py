"""Properties of cells, heads, layers and decoders: padding, empty arrays, dtypes, devices.

For random shapes, 0 and 1 among them, values and gradients equal NumPy's, and what lies in padding,
NaN and infinity included, changes no bit of either. Compiling takes most of the time, so shapes
come from small sets, and each program runs on several lengths.
"""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from flaxnets.decoders.attention import attend, average_regions
from flaxnets.decoders.show_attend_tell import SoftAttention
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.heads.classifier import ClipClassifier, StepClassifier
from flaxnets.heads.pooling import (
    AttentionPooling,
    pool_concatenate,
    pool_last,
    pool_max,
    pool_mean,
)
from flaxnets.layers.convolution import conv2d
from flaxnets.layers.depthwise import depthwise_conv
from flaxnets.layers.normalization import BatchNorm
from flaxnets.layers.padding import check_lengths, zero_where_masked
from flaxnets.layers.pooling import average_pool, max_pool
from flaxnets.metrics import cross_entropies, cross_entropy
from flaxnets.models.captioner import Captioner
from flaxnets.models.crnn import CRNN
from flaxnets.models.late_fusion import LateFusion
from flaxnets.models.multi_level import MultiLevelCRNN
from flaxnets.recurrent import FrameAverage, LSTMCell, MinGRUCell, Recurrent
from flaxnets.recurrent.scan import ScanOptions
from flaxnets.tasks.captioning import Captioning
from flaxnets.tasks.cider import DocumentFrequencies
from flaxnets.tasks.self_critical import SelfCritical
from flaxnets.tasks.video_classification import VideoClassification
from tests.flaxnets.decoders import caption_cases
from tests.flaxnets.meshes import make_mesh, tracing_on
from tests.flaxnets.models.networks import ThreeLevels, random_variables
from tests.flaxnets.recurrent import reference
from tests.flaxnets.recurrent.cases import CASES, FLOAT64, call_scan
from tests.flaxnets.recurrent.linear_cases import LINEAR_CASES


def examples(count: int, **options: Any) -> settings:
    """Returns settings of a test with this number of cases, the same ones in every run."""
    options = {"derandomize": True} | options
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )


def many(count: int) -> settings:
    """Returns settings of a stress test: other cases in every run."""
    return examples(count, derandomize=False, print_blob=True)


POISONS = (np.nan, np.inf, -np.inf, 1e30)
poisons = st.sampled_from(POISONS)
seeds = st.integers(0, 2**16)
DTYPES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float64": FLOAT64,
    "bfloat16": {"dtype": jnp.bfloat16},
}
TOLERANCE = {"float32": 2e-4, "float64": 1e-9, "bfloat16": 0.1}


def over(mask: np.ndarray, x: Any) -> np.ndarray:
    """Appends axes to a mask up to the rank of an array."""
    return mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))


def with_padding(x: np.ndarray, valid: np.ndarray, value: float) -> np.ndarray:
    """Replaces what is not valid by one value."""
    return np.where(over(valid, x), x, np.asarray(value, x.dtype))


def draw_lengths(rng: np.random.Generator, b: int, t: int) -> np.ndarray:
    """Draws lengths in [0,T]; one sequence has all steps, another none."""
    lengths = rng.integers(0, t + 1, b)
    if b > 1:
        lengths[rng.permutation(b)[:2]] = t, 0
    return lengths.astype(np.int32)


def weights_like(x: Any) -> np.ndarray:
    """Returns numbers without a pattern, by which a result is weighed into a scalar."""
    return np.cos(1.0 + np.arange(x.size)).reshape(x.shape)


def weigh(tree: Any) -> Any:
    """Returns a scalar from all leaves of results."""
    return sum((weights_like(x) * x.real).sum() for x in jax.tree.leaves(tree))


def assert_equal_bits(actual: Any, expected: Any) -> None:
    """Compares two pytrees without tolerance, and checks that they are finite."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert np.isfinite(np.asarray(a, np.result_type(a.dtype, np.float32))).all()
        np.testing.assert_array_equal(a, b)


def assert_near(actual: Any, expected: Any, tolerance: float) -> None:
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a = np.asarray(a, np.result_type(a.dtype, np.float32))
        np.testing.assert_allclose(
            a, b, rtol=tolerance, atol=tolerance * max(1, np.max(np.abs(b), initial=0))
        )


def slope(loss: Callable[..., float], arguments: Any, direction: Any) -> float:
    """Returns the derivative of a function of NumPy arrays along a direction."""
    step = 1e-5
    ahead, back = (
        loss(*jax.tree.map(lambda x, d, sign=sign: x + sign * step * d, arguments, direction))
        for sign in (1, -1)
    )
    return (ahead - back) / (2 * step)


def along(gradients: Any, direction: Any) -> float:
    leaves = zip(jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True)
    return sum(float((np.asarray(g, np.float64) * d).sum()) for g, d in leaves)


# Cells.

ALL_CASES = (*CASES, *LINEAR_CASES)


@functools.cache
def compiled_cell(cell: Any, reverse: bool, gradients: str, on_devices: bool) -> Any:
    """Returns the compiled loss of a scan, with its results and its gradients."""
    options = ScanOptions(gradients=gradients)

    def loss(params: Any, x: Any, lengths: Any) -> Any:
        carry, outputs = call_scan(cell, params, None, x, lengths, reverse=reverse, options=options)
        return weigh((carry, outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32)))), (
            carry,
            outputs,
        )

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def check_cell(
    case: Any,
    gradients: str,
    reverse: bool,
    sizes: tuple[int, int, bool],
    dtype: str,
    seed: int,
    poison: float,
) -> None:
    """Compares a scan of one shape with NumPy, for three draws of lengths."""
    b, t, sharded = sizes
    rng = np.random.default_rng(seed)
    params, axes = draw_cell(case, seed % 7)
    with ExitStack() as stack:
        if dtype == "float64":
            stack.enter_context(jax.enable_x64(True))
        if sharded:
            stack.enter_context(tracing_on(make_mesh(8)))
        run = compiled_cell(case.make_cell(**DTYPES[dtype]), reverse, gradients, sharded)
        zeros = jax.tree.map(
            lambda x: np.zeros((b, *x.shape[1:]), x.dtype),
            jax.eval_shape(partial(start, case, axes)),
        )
        narrow = np.float64 if dtype == "float64" else np.float32
        given = jax.tree.map(narrow, params)
        tolerance = TOLERANCE[dtype]
        for _ in range(3):
            x, lengths = rng.normal(size=(b, t, *axes)), draw_lengths(rng, b, t)
            valid = np.arange(t) < lengths[:, None]

            def place(x: np.ndarray) -> Any:
                array = jnp.asarray(x, jnp.bfloat16 if dtype == "bfloat16" else narrow)
                if not sharded:
                    return array
                return jax.device_put(array, NamedSharding(make_mesh(8), PartitionSpec("data")))

            poisoned = jax.device_get(
                run(given, place(with_padding(x, valid, poison)), jnp.asarray(lengths))
            )
            clean = jax.device_get(
                run(given, place(with_padding(x, valid, 0.0)), jnp.asarray(lengths))
            )
            assert_equal_bits(poisoned, clean)
            (_, (carry, outputs)), (d_params, d_inputs) = poisoned
            assert not np.asarray(d_inputs, np.float32)[~valid].any()

            def refer(
                params: Any, x: np.ndarray, lengths: Any = lengths, like: Any = outputs
            ) -> Any:
                if not lengths.any():  # The reference learns the width of outputs from a step.
                    return zeros, np.zeros(like.shape)
                return reference.scan(case.step, params, zeros, x, lengths, reverse=reverse)

            assert_near((carry, outputs), refer(params, x), tolerance)
            if dtype != "bfloat16":
                direction = jax.tree.map(lambda x: rng.normal(size=x.shape), (params, x))
                direction[1][~valid] = 0
                expected = slope(lambda *a: weigh(refer(*a)), (params, x), direction)
                found = along((d_params, d_inputs), direction)
                assert abs(found - expected) <= max(tolerance, 1e-6) * (10 + abs(expected))


@functools.cache
def draw_cell(case: Any, seed: int) -> tuple[Any, tuple[int, ...]]:
    """Returns parameters, float64, and the axes of an input after those of batch and time."""
    with jax.enable_x64(True):
        params, _, x = case.draw(seed)
    return params, x.shape[2:]


def start(case: Any, axes: tuple[int, ...]) -> Any:
    """Returns the carry of one sequence before its first step."""
    return case.make_cell().initialize_carry(None, (1, *axes))


cells = st.tuples(
    st.sampled_from(ALL_CASES),
    st.sampled_from(["deferred", "autodiff"]),
    st.booleans(),
    st.sampled_from([(3, 4, False), (8, 3, True), (0, 3, False), (2, 0, False), (1, 1, False)]),
    st.sampled_from(["float32", "float64", "bfloat16"]),
    seeds,
    poisons,
)


@examples(14)
@given(cells)
def test_cells_equal_numpy_and_read_no_padding(case: Any) -> None:
    check_cell(*case)


@pytest.mark.stress
@many(400)
@given(cells)
def test_more_cells_equal_numpy_and_read_no_padding(case: Any) -> None:
    check_cell(*case)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_every_cell_reads_no_padding(case: Any) -> None:
    for number, gradients in enumerate(("deferred", "autodiff")):
        check_cell(case, gradients, bool(number), (3, 4, False), "float32", number, np.nan)


# Layers of cells.


def check_recurrent(
    make_cell: Any, attributes: dict[str, Any], sizes: tuple[int, int], seed: int, poison: float
) -> None:
    """Compares a layer with itself on zeros in place of padding, and on a stream of chunks."""
    b, t = sizes
    rng = np.random.default_rng(seed)
    layer = Recurrent(make_cell, **attributes)
    axes = (4, 3, 2) if make_cell().num_feature_axes == 3 else (4,)
    x = rng.normal(size=(b, t, *axes)).astype(np.float32)
    lengths = draw_lengths(rng, b, t)
    valid = np.arange(t) < lengths[:, None]
    variables = random_variables(layer, np.zeros((1, 2, *axes), np.float32))

    @jax.jit
    def run(variables: Any, x: Any) -> Any:
        def loss(variables: Any, x: Any) -> Any:
            outputs = layer.apply(variables, x, lengths.tolist(), train=False)
            return weigh(outputs), outputs

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(variables, x)

    poisoned = jax.device_get(run(variables, with_padding(x, valid, poison)))
    assert_equal_bits(poisoned, jax.device_get(run(variables, with_padding(x, valid, 0.0))))
    (_, outputs), (d_variables, d_inputs) = poisoned
    assert outputs.shape[:2] == (b, t)
    assert not outputs[~valid].any()
    assert not d_inputs[~valid].any()
    if not valid.any():
        assert not any(leaf.any() for leaf in jax.tree.leaves(d_variables))
    if attributes.get("bidirectional"):
        return
    cut = t // 2
    carry, first = layer.apply(
        variables,
        None,
        with_padding(x, valid, poison)[:, :cut],
        np.minimum(lengths, cut),
        method="stream",
    )
    _, second = layer.apply(
        variables,
        carry,
        with_padding(x, valid, poison)[:, cut:],
        np.maximum(lengths - cut, 0),
        method="stream",
    )
    np.testing.assert_allclose(np.concatenate([first, second], 1), outputs, atol=1e-5)


layers = st.tuples(
    st.sampled_from(
        [partial(LSTMCell, 4), partial(MinGRUCell, 4), partial(nn.GRUCell, 4), CASES[9].make_cell]
    ),
    st.fixed_dictionaries(
        {
            "num_layers": st.integers(1, 2),
            "bidirectional": st.booleans(),
            "normalize_inputs": st.booleans(),
            "normalize_layers": st.booleans(),
            "glu": st.booleans(),
            "delta_features": st.booleans(),
            "input_features": st.sampled_from([0, 4]),
            "layer_input_features": st.sampled_from([0, 4]),
        }
    ),
    st.sampled_from([(3, 4), (2, 0), (0, 3), (1, 1)]),
    seeds,
    poisons,
)


@examples(6)
@given(layers)
def test_layers_of_cells_read_no_padding(case: Any) -> None:
    check_recurrent(*case)


@pytest.mark.stress
@many(100)
@given(layers)
def test_more_layers_of_cells_read_no_padding(case: Any) -> None:
    check_recurrent(*case)


# Heads.


def dense(params: Any, x: np.ndarray) -> np.ndarray:
    return x @ params["kernel"] + params["bias"]


def attention_over_steps(params: Any, steps: np.ndarray) -> np.ndarray:
    powers = np.exp(np.tanh(dense(params["hidden"], steps)) @ params["query"])
    return (powers / powers.sum()) @ steps


HEADS: dict[str, tuple[Any, Callable[[Any, np.ndarray], np.ndarray]]] = {
    "last": (lambda: ClipClassifier(3, pool_last), lambda p, x: dense(p["scores"], x[-1])[None]),
    "mean": (
        lambda: ClipClassifier(3, pool_mean),
        lambda p, x: dense(p["scores"], x.mean(0))[None],
    ),
    "max": (
        lambda: ClipClassifier(3, pool_max, step_features=(5,)),
        lambda p, x: dense(p["scores"], np.maximum(dense(p["step_0"], x), 0).max(0))[None],
    ),
    "attention": (
        lambda: ClipClassifier(3, AttentionPooling(5, name="pool")),
        lambda p, x: dense(p["scores"], attention_over_steps(p["pool"], x))[None],
    ),
    "steps": (
        lambda: StepClassifier(3, hidden_features=5),
        lambda p, x: dense(p["scores"], np.maximum(dense(p["hidden"], x), 0)),
    ),
    "average": (
        lambda: FrameAverage(5),
        lambda p, x: np.broadcast_to(np.maximum(dense(p["hidden"], x), 0).mean(0), (len(x), 5)),
    ),
}


@functools.cache
def compiled_head(name: str) -> Any:
    """Returns the compiled loss of a head over its valid steps, with logits and gradients."""
    head = HEADS[name][0]()

    def loss(variables: Any, x: Any, lengths: Any) -> Any:
        logits = head.apply(variables, x, lengths, train=False)
        read = jnp.arange(logits.shape[1]) < jnp.maximum(lengths, logits.shape[1] == 1)[:, None]
        return weigh(jnp.where(read[..., None], logits, 0)), logits

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def check_head(name: str, sizes: tuple[int, int, bool], seed: int, poison: float) -> None:
    """Compares a head with NumPy, sequence by sequence."""
    b, t, sharded = sizes
    rng = np.random.default_rng(seed)
    make, refer = HEADS[name]
    variables = random_variables(make(), np.zeros((1, 2, 4), np.float32))
    for _ in range(3):
        x, lengths = rng.normal(size=(b, t, 4)).astype(np.float32), draw_lengths(rng, b, t)
        valid = np.arange(t) < lengths[:, None]
        with ExitStack() as stack:
            placed = [with_padding(x, valid, value) for value in (poison, 0.0)]
            if sharded:
                stack.enter_context(tracing_on(make_mesh(8)))
                rows = NamedSharding(make_mesh(8), PartitionSpec("data"))
                placed = [jax.device_put(array, rows) for array in placed]
            poisoned, clean = (
                jax.device_get(compiled_head(name)(variables, array, lengths)) for array in placed
            )
        assert_equal_bits(poisoned, clean)
        (_, logits), (_, d_inputs) = poisoned
        assert not d_inputs[~valid].any()
        params = jax.tree.map(np.float64, variables["params"])
        for row, length in enumerate(lengths):
            if length:
                expected = refer(params, x[row, :length].astype(np.float64))
                np.testing.assert_allclose(logits[row, : len(expected)], expected, atol=1e-5)


heads = st.tuples(
    st.sampled_from(sorted(HEADS)),
    st.sampled_from([(3, 4, False), (8, 4, True), (2, 0, False), (0, 4, False), (1, 1, False)]),
    seeds,
    poisons,
)


@examples(14)
@given(heads)
def test_heads_equal_numpy_and_read_no_padding(case: Any) -> None:
    check_head(*case)


@pytest.mark.stress
@many(200)
@given(heads)
def test_more_heads_equal_numpy_and_read_no_padding(case: Any) -> None:
    check_head(*case)


@pytest.mark.parametrize("pool", [pool_last, pool_mean, pool_max, pool_concatenate])
@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 2, 3), (0, 0, 3)])
def test_pools_of_nothing_are_zero(pool: Any, shape: tuple[int, ...]) -> None:
    value, gradient = jax.value_and_grad(lambda x: pool(x, [0] * shape[0]).sum())(jnp.ones(shape))
    assert value == 0
    assert gradient.shape == shape
    width = shape[1] * shape[2] if pool is pool_concatenate else shape[2]
    assert pool(jnp.ones(shape)).shape == (shape[0], width)


# Layers of feature maps, against loops in NumPy.


def pad_maps(x: np.ndarray, kernel: int, stride: int, padding: str, value: float) -> np.ndarray:
    """Pads as TensorFlow's SAME, or not at all."""
    if padding == "VALID":
        return x
    totals = [max((-(-n // stride) - 1) * stride + kernel - n, 0) if n else 0 for n in x.shape[1:3]]
    widths = [(total // 2, total - total // 2) for total in totals]
    return np.pad(x, [(0, 0), *widths, (0, 0)], constant_values=value)


def windows(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """Returns the windows (N,h,w,k,k,C) of padded maps."""
    n, height, width, channels = x.shape
    rows, columns = (max((size - kernel) // stride + 1, 0) for size in (height, width))
    found = np.zeros((n, rows, columns, kernel, kernel, channels))
    for i, j in np.ndindex(rows, columns):
        top, left = i * stride, j * stride
        found[:, i, j] = x[:, top : top + kernel, left : left + kernel]
    return found


def check_maps(
    shape: tuple[int, int, int], kernel: int, stride: int, padding: str, seed: int
) -> None:
    """Compares convolutions and pools of one size with NumPy, in value and gradient."""
    rng = np.random.default_rng(seed)
    channels = 4
    x = rng.normal(size=(*shape, channels)).astype(np.float32)
    full = rng.normal(size=(kernel, kernel, channels, 3)).astype(np.float32)
    single = rng.normal(size=(kernel, kernel, 1, channels)).astype(np.float32)
    strides = (stride, stride)
    padded = windows(pad_maps(x, kernel, stride, padding, 0), kernel, stride)
    inside = windows(x, kernel, stride)
    pairs: list[tuple[Callable[..., Any], Any, np.ndarray]] = [
        (
            lambda x, w: conv2d(x, w, strides=strides, padding=padding),
            full,
            np.einsum("nhwijc,ijcd->nhwd", padded, full),
        ),
        (
            lambda x, w: depthwise_conv(x, w, strides=stride, padding=padding),
            single,
            np.einsum("nhwijc,ijc->nhwc", padded, single[:, :, 0]),
        ),
        (lambda x, w: max_pool(x, kernel, stride), None, inside.max((3, 4), initial=-np.inf)),
        (lambda x, w: average_pool(x, kernel, stride), None, inside.sum((3, 4)) / kernel**2),
    ]

    @jax.jit
    def run(arguments: Any) -> Any:
        results = []
        for (operation, _, _), (x, w) in zip(pairs, arguments, strict=True):
            y, pull = jax.vjp(operation, x, w)
            results.append((y, pull(jnp.asarray(weights_like(y), y.dtype))))
        return results

    results = jax.device_get(run([(x, w) for _, w, _ in pairs]))
    for (y, (d_x, d_w)), (_, w, expected) in zip(results, pairs, strict=True):
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, atol=1e-4)
        # Of what is linear in x the gradient follows from <y, g> = <x, ∂x>, for w alike.
        product = float((y * weights_like(y)).sum())
        np.testing.assert_allclose((d_x * x).sum(), product, atol=1e-3)
        if w is not None:
            np.testing.assert_allclose((d_w * w).sum(), product, atol=1e-3)
            assert d_w.shape == w.shape


maps = st.tuples(
    st.tuples(st.sampled_from([0, 1, 2]), st.sampled_from([0, 1, 3, 6]), st.sampled_from([1, 5])),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([1, 2]),
    st.sampled_from(["SAME", "VALID"]),
    seeds,
)


@examples(8)
@given(maps)
def test_layers_of_maps_equal_numpy(case: Any) -> None:
    check_maps(*case)


@pytest.mark.stress
@many(150)
@given(maps)
def test_more_layers_of_maps_equal_numpy(case: Any) -> None:
    check_maps(*case)


@pytest.mark.parametrize(("kernel", "strides"), [(3, 1), (1, 1), (3, 2), (5, 1)])
def test_convolutions_of_no_image_are_empty(kernel: int, strides: int) -> None:
    # So many channels that images would take the algorithms for CPUs.
    x, w = np.zeros((0, 16, 16, 32), np.float32), np.ones((kernel, kernel, 32, 32), np.float32)
    y, pull = jax.vjp(partial(conv2d, strides=(strides, strides)), x, w)
    assert y.shape == (0, 16 // strides, 16 // strides, 32)
    of_inputs, of_kernel = pull(y)
    assert of_inputs.shape == x.shape
    assert of_kernel.shape == w.shape
    assert not of_kernel.any()


@jax.jit  # Of the mask, too, so that it compiles once for each shape.
def normalize_masked(variables: Any, x: Any, mask: Any) -> Any:
    """Returns what a loss of BatchNorm's outputs is, with outputs, statistics and gradients."""

    def loss(variables: Any, x: Any) -> Any:
        y, updated = BatchNorm().apply(variables, x, mask, train=True, mutable=["batch_stats"])
        y = jnp.where(over(mask, y), y, 0)
        return weigh(y), (y, updated["batch_stats"])

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(variables, x)


@examples(8)
@given(st.sampled_from([(4, 2, 3), (3, 1, 1), (1, 2, 2), (0, 2, 2), (2, 0, 2)]), seeds, poisons)
def test_batch_norm_reads_no_image_that_is_left_out(
    shape: tuple[int, int, int], seed: int, poison: float
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, (*shape, 2)).astype(np.float32)
    mask = rng.random(len(x)) < 0.6
    if len(x) > 1:
        mask[:2] = True, False
    variables = {
        "params": {"scale": rng.normal(size=2), "bias": rng.normal(size=2)},
        "batch_stats": {"mean": rng.normal(size=2), "var": rng.uniform(1, 2, 2)},
    }
    variables = jax.tree.map(np.float32, variables)

    counts = mask if mask.any() else np.ones(len(x), bool)
    poisoned, clean = (
        jax.device_get(normalize_masked(variables, with_padding(x, counts, value), mask))
        for value in (poison, 0.0)
    )
    assert_equal_bits(poisoned, clean)
    (_, (y, statistics)), (_, d_inputs) = poisoned
    read = x[counts].astype(np.float64)
    if not read.size:
        assert_equal_bits(statistics, variables["batch_stats"])
        return
    mean, var = read.mean((0, 1, 2)), read.var((0, 1, 2))
    old = variables["batch_stats"]
    assert_near(
        statistics,
        {"mean": 0.9 * old["mean"] + 0.1 * mean, "var": 0.9 * old["var"] + 0.1 * var},
        1e-5,
    )
    params = variables["params"]
    expected = (x[mask] - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y[mask], expected, atol=1e-4)
    if mask.any():
        assert not d_inputs[~mask].any()


# Losses and attention.


@examples(10)
@given(
    st.sampled_from([(5, 3), (1, 2), (0, 3)]),
    st.sampled_from([0.0, 0.2]),
    seeds,
    poisons,
)
def test_losses_read_no_entry_that_is_left_out(
    shape: tuple[int, int], smoothing: float, seed: int, poison: float
) -> None:
    rng = np.random.default_rng(seed)
    logits, mask = rng.normal(size=shape).astype(np.float32), rng.random(shape[0]) < 0.5
    labels = np.where(mask, rng.integers(0, shape[1], shape[0]), -7)

    def loss(*given: Any) -> Any:
        total, _ = cross_entropy(*given, label_smoothing=smoothing)
        return total, cross_entropies(*given, label_smoothing=smoothing)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    poisoned, clean = (
        jax.device_get(run(with_padding(logits, mask, value), labels, mask))
        for value in (poison, 0.0)
    )
    assert_equal_bits(poisoned, clean)
    read = logits[mask].astype(np.float64)
    logs = read - np.log(np.exp(read).sum(-1, keepdims=True))
    targets = (1 - smoothing) * np.eye(shape[1])[labels[mask]] + smoothing / shape[1]
    (total, losses), d_logits = poisoned
    expected = -(targets * logs).sum(-1)
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(losses[mask], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_logits[mask], np.exp(logs) - targets, atol=1e-6)
    assert not losses[~mask].any()
    assert not d_logits[~mask].any()


@pytest.mark.parametrize("poison", POISONS)
def test_attention_reads_no_region_that_is_masked(poison: float) -> None:
    rng = np.random.default_rng(0)
    keys, query, vector = (rng.normal(size=s).astype(np.float32) for s in ((2, 3, 4), (2, 1, 4), 4))
    mask = np.array([[True, True, False], [False, False, False]])

    def run(keys: np.ndarray) -> Any:
        def loss(keys: Any, query: Any, vector: Any) -> Any:
            return weigh((attend(keys, query, vector, mask), average_regions(keys, mask)))

        run = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
        return jax.device_get(run(keys, query, vector))

    assert_equal_bits(run(with_padding(keys, mask, poison)), run(with_padding(keys, mask, 0.0)))
    assert attend(keys[:, :0], query, vector, mask[:, :0]).shape == (2, 1, 0)
    assert not average_regions(keys[:, :0], None).any()


# Decoders.


@functools.cache
def compiled_decoder(case: Any, gradients: str) -> Any:
    """Returns the compiled loss of a decoder, with its outputs and gradients."""
    decoder = case.make(gradients=gradients, dropout_rate=0.0)

    def loss(variables: Any, regions: Any, tokens: Any, lengths: Any, mask: Any) -> Any:
        outputs = decoder.apply(variables, regions, tokens, lengths, mask, train=False)
        valid = (jnp.arange(tokens.shape[-1]) < lengths[..., None])[..., None]
        logits = jnp.where(valid, outputs.logits, 0)
        return weigh(logits), (logits, outputs.attention)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def check_decoder(case: Any, gradients: str, b: int, seed: int, poison: float) -> None:
    """Compares a decoder with NumPy, for two draws of lengths and masked regions."""
    rng = np.random.default_rng(seed)
    variables, regions = caption_cases.draw(case)
    regions = regions[:b]
    with jax.enable_x64(True):
        for _ in range(2):
            tokens = rng.integers(2, caption_cases.V, (b, caption_cases.C, caption_cases.L))
            tokens = tokens.astype(np.int32)
            lengths = rng.integers(0, caption_cases.L + 1, tokens.shape[:2]).astype(np.int32)
            mask = rng.random(regions.shape[:2]) < 0.7
            poisoned, clean = (
                jax.device_get(
                    compiled_decoder(case, gradients)(
                        variables, with_padding(regions, mask, value), tokens, lengths, mask
                    )
                )
                for value in (poison, 0.0)
            )
            assert_equal_bits(poisoned, clean)
            (_, (logits, attention)), (_, d_regions) = poisoned
            assert not d_regions[~mask].any()
            expected = case.refer(variables["params"], regions, tokens, lengths, mask)
            some = over(mask.any(1), logits)  # The reference knows no image without regions.
            np.testing.assert_allclose(
                np.where(some, logits, 0), np.where(some, expected[0].real, 0), atol=1e-9
            )
            if case.attends:
                some = over(mask.any(1), attention)
                np.testing.assert_allclose(
                    np.where(some, attention, 0), np.where(some, expected[1].real, 0), atol=1e-9
                )


decoders = st.tuples(
    st.sampled_from(caption_cases.CASES),
    st.sampled_from(["deferred", "autodiff"]),
    st.sampled_from([3, 1, 0]),
    seeds,
    poisons,
)


@examples(4)
@given(decoders)
def test_decoders_equal_numpy_and_read_no_masked_region(case: Any) -> None:
    check_decoder(*case)


@pytest.mark.stress
@many(80)
@given(decoders)
def test_more_decoders_equal_numpy_and_read_no_masked_region(case: Any) -> None:
    check_decoder(*case)


# Whole models and their tasks.

ROWS, STEPS = 3, 3
LENGTHS = np.array([3, 1, 2], np.int32)
MASK = np.array([True, True, False])
READ = (np.arange(STEPS) < LENGTHS[:, None]) & MASK[:, None]


def lstm(**attributes: Any) -> Recurrent:
    return Recurrent(partial(LSTMCell, 4), **attributes)


MODELS: dict[str, tuple[nn.Module, tuple[int, ...], dict[str, Any]]] = {
    "batch-statistics": (
        CRNN(StepClassifier(3), SmallCNN((4,), (2,)), lstm(normalize_inputs=True)),
        (8, 8, 3),
        {"label_smoothing": 0.1},
    ),
    "frozen-statistics": (
        CRNN(StepClassifier(3), SmallCNN((4,), (2,)), chunk_frames=2, freeze_statistics=True),
        (8, 8, 3),
        {"loss_kind": "clip"},
    ),
    "features": (CRNN(StepClassifier(3), None, lstm()), (4,), {"mixup": 0.5}),
    "late-fusion": (
        LateFusion(CRNN(ClipClassifier(3, pool_mean)), members=2, projection_features=3),
        (2, 4),
        {},
    ),
    "levels": (
        MultiLevelCRNN({"top": lstm()}, partial(StepClassifier, 3), ThreeLevels(("top",))),
        (8, 8, 3),
        {"loss_kind": "linear_gain"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_training_on_clips_reads_neither_padding_nor_rows_left_out(name: str) -> None:
    model, axes, options = MODELS[name]
    task = VideoClassification(**options)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(ROWS, STEPS, *axes)).astype(np.float32)
    variables = random_variables(model, inputs, LENGTHS)

    @jax.jit
    def run(params: Any, inputs: Any) -> Any:
        def total(params: Any) -> Any:
            batch = {
                "features": inputs,
                "lengths": jnp.asarray(LENGTHS),
                "label": jnp.array([0, 2, -1]),
                "mask": jnp.asarray(MASK),
            }
            every = {**variables, "params": params}
            sums, collections = task.loss(model, every, batch, jax.random.key(0))
            return sums["loss"][0], (sums, collections)

        return jax.value_and_grad(total, has_aux=True)(params)

    poisoned, clean = (
        jax.device_get(run(variables["params"], with_padding(inputs, READ, value)))
        for value in (np.nan, 0.0)
    )
    assert_equal_bits(poisoned, clean)


@pytest.mark.parametrize("self_critical", [False, True])
def test_training_on_captions_reads_neither_padding_nor_rows_left_out(self_critical: bool) -> None:
    decoder = SoftAttention(
        vocabulary_size=8,
        make_cell=partial(LSTMCell, 4),
        embed_features=3,
        attention_features=5,
        dropout_rate=0.0,
    )
    model = Captioner(decoder, region_features=4, feature_dropout_rate=0.1)
    task: Any = Captioning(str, attention_penalty=1.0)
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, 8, (ROWS, 2, 4)).astype(np.int32)
    tokens[..., -1] = 2
    if self_critical:
        frequencies = DocumentFrequencies.count(list(tokens))
        task = SelfCritical(words=str, frequencies=frequencies, num_samples=2, drawn_steps=3)
    token_lengths = np.array([[4, 2], [3, 0], [1, 4]], np.int32)
    features = rng.normal(size=(ROWS, STEPS, 6)).astype(np.float32)
    weights = np.ones((ROWS, 2), np.float32)
    absent = (token_lengths == 0) | ~MASK[:, None]
    variables = random_variables(model, features, tokens, token_lengths, LENGTHS)

    @jax.jit
    def run(params: Any, features: Any, weights: Any) -> Any:
        def total(params: Any) -> Any:
            batch = {
                "features": features,
                "lengths": LENGTHS,
                "tokens": tokens,
                "token_lengths": token_lengths,
                "caption_weights": weights,
                "mask": jnp.asarray(MASK),
            }
            sums, _ = task.loss(model, {"params": params}, batch, jax.random.key(0))
            return sums["loss"][0], sums

        return jax.value_and_grad(total, has_aux=True)(params)

    poisoned, clean = (
        jax.device_get(
            run(
                variables["params"],
                with_padding(features, READ, value),
                with_padding(weights, ~absent, value),
            )
        )
        for value in (np.nan, 0.0)
    )
    assert_equal_bits(poisoned, clean)


@pytest.mark.parametrize("sizes", [(2, 0), (0, 2)])
@pytest.mark.parametrize("name", MODELS)
def test_models_of_no_steps_or_no_clips_have_logits(name: str, sizes: tuple[int, int]) -> None:
    model, axes, _ = MODELS[name]
    variables = random_variables(model, np.zeros((1, 2, *axes), np.float32), [1])
    inputs = np.zeros((*sizes, *axes), np.float32)
    apply = partial(model.apply, train=False)
    logits = jax.eval_shape(apply, variables, inputs, [0] * sizes[0])
    assert logits.shape[0] == sizes[0]
    assert logits.shape[1] in (1, sizes[1])
    assert logits.shape[-1] == 3


# Lengths.


@pytest.mark.parametrize(
    "lengths",
    [[3, 0], (3, 0), np.array([3, 0]), np.array([3, 0], np.uint8), [jnp.int32(3), jnp.int32(0)]],
)
def test_lengths_may_be_any_sequence_of_integers(lengths: Any) -> None:
    found = check_lengths(lengths, 2, 3)
    assert found.dtype == jnp.int32
    assert found.tolist() == [3, 0]
    assert check_lengths([], 0, 3).shape == (0,)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([3.0, 1.0], "lengths: expected an integer dtype, received float64"),
        ([True, False], "lengths: expected an integer dtype, received bool"),
        ([4, 0], r"lengths: expected values in \[0, 3\], received \[4, 0\]"),
        ([3], r"lengths: expected shape \(2,\), received \(1,\)"),
        (3, r"lengths: expected shape \(2,\), received \(\)"),
    ],
)
def test_other_lengths_are_refused(lengths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_lengths(lengths, 2, 3)


def test_integers_have_no_padding_to_be_zeroed() -> None:
    pixels = np.full((2, 2), 7, np.uint8)
    assert zero_where_masked(pixels, np.array([True, False])) is pixels
