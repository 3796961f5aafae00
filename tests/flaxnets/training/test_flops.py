"""Counted operations against XLA's cost analysis and against counts by hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.decoders.show_attend_tell import SoftAttention
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.heads.classifier import StepClassifier
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.cells import LSTMCell
from flaxnets.recurrent.convolutional_cells import ConvLSTMCell
from flaxnets.recurrent.layers import Recurrent
from flaxnets.training.flops import Flops, count_flops


def zeros(*shape: int, dtype: Any = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def convolve(stride: int, padding: Any, groups: int = 1, dilation: int = 1) -> Callable[..., Any]:
    return partial(
        jax.lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=padding,
        feature_group_count=groups,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (jnp.matmul, ((8, 16), (16, 4))),
        (lambda a, b: jnp.einsum("bik,bkj->bij", a, b), ((3, 8, 16), (3, 16, 4))),
        (convolve(1, "SAME"), ((2, 9, 7, 4), (3, 3, 4, 6))),
        (convolve(2, "SAME"), ((2, 20, 20, 4), (5, 5, 4, 6))),
        (convolve(1, "VALID", dilation=2), ((2, 20, 20, 4), (3, 3, 4, 6))),
        (convolve(1, [(3, 1), (0, 2)], groups=4), ((2, 8, 8, 4), (3, 3, 1, 8))),
    ],
)
def test_products_and_their_gradients_are_counted_as_by_xla(
    function: Callable[..., Any], shapes: tuple[tuple[int, ...], ...]
) -> None:
    arguments = [zeros(*shape) for shape in shapes]

    def gradients(*given: Any) -> Any:
        # Linear in the cotangent, so that only convolutions and matmuls remain.
        _, pull = jax.vjp(function, *given[:-1])
        return pull(given[-1])

    cotangent = jax.eval_shape(function, *arguments)
    for call, given in ((function, arguments), (gradients, [*arguments, cotangent])):
        analysis: Any = jax.jit(call).lower(*given).cost_analysis()
        counted = count_flops(call, *given)
        assert counted.products > 0
        np.testing.assert_allclose(counted.products, analysis["flops"], rtol=1e-6)


def test_sums_of_no_terms_count_nothing() -> None:
    assert count_flops(jnp.matmul, jnp.zeros((2, 0)), jnp.zeros((0, 3))).products == 0


def test_what_is_not_needed_is_not_counted() -> None:
    def gradient(x: Any, w: Any) -> Any:
        return jax.grad(lambda w: (x @ w).sum())(w)

    assert count_flops(gradient, zeros(8, 16), zeros(16, 4)).products == 2 * 8 * 16 * 4


@pytest.mark.parametrize(
    ("rows", "depth", "columns", "is_narrow"),
    [(64, 64, 64, False), (63, 64, 64, True), (64, 63, 64, True), (64, 64, 63, True)],
)
def test_narrow_products(rows: int, depth: int, columns: int, is_narrow: bool) -> None:
    given = zeros(2, 3, rows, depth), zeros(2, 3, depth, columns)
    counted = count_flops(jnp.matmul, *given)
    assert counted.products == 2 * 6 * rows * depth * columns
    assert counted.narrow == is_narrow * counted.products


@pytest.mark.parametrize(("channels", "features"), [(64, 64), (63, 64), (64, 63)])
def test_convolutions_of_few_channels_are_narrow(channels: int, features: int) -> None:
    convolve = partial(jax.lax.conv, window_strides=(1, 1), padding="SAME")
    counted = count_flops(convolve, zeros(2, channels, 5, 5), zeros(features, channels, 3, 3))
    assert counted.products > 0
    assert counted.narrow == (channels + features < 128) * counted.products


def test_loops_branches_and_elements() -> None:
    x = zeros(8, 8)

    def scanned(x: Any) -> Any:
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ x), None), x, length=5)[0]

    products = 5 * 2 * 8**3
    assert count_flops(scanned, x) == Flops(products, products, transcendental=5 * 64)

    def repeated(x: Any) -> Any:
        return jax.lax.while_loop(lambda c: c.sum() > 0, lambda c: c @ x, x)

    assert count_flops(repeated, x) == Flops(2 * 8**3, 2 * 8**3, elementwise=65, unbounded_loops=1)

    def branched(flag: Any, x: Any) -> Any:
        return jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert count_flops(branched, zeros(dtype=np.bool_), x).products == 2 * 2 * 8**3

    def by_platform(x: Any) -> Any:
        return jax.lax.platform_dependent(x, cpu=lambda x: x @ x @ x, default=lambda x: x @ x)

    assert count_flops(by_platform, x).products == 2 * 2 * 8**3
    assert count_flops(by_platform, x, platform="tpu").products == 2 * 8**3


def training(model: Any, *inputs: Any, **options: Any) -> tuple[Any, Any]:
    """Returns the forward pass and the gradient of the parameters, of (variables, *inputs)."""

    def forward(variables: Any, *inputs: Any) -> Any:
        outputs = model.apply(variables, *inputs, train=False, **options)
        leaves = jax.tree.leaves(outputs)
        return sum(jnp.sum(jnp.square(x)) for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))

    def gradient(variables: Any, *inputs: Any) -> Any:
        return jax.grad(lambda p: forward({**variables, "params": p}, *inputs))(variables["params"])

    return forward, gradient


def variables_of(model: Any, *inputs: Any) -> Any:
    return jax.eval_shape(
        lambda *inputs: model.init(jax.random.key(0), *inputs, train=False), *inputs
    )


def test_lrcn() -> None:
    b, t, size, classes, width = 2, 6, 32, 7, 24
    model = CRNN(
        StepClassifier(classes),
        SmallCNN((8, 16), (2, 2), kernel_size=3),
        Recurrent(partial(LSTMCell, width)),
        pool="flatten",
    )
    inputs = zeros(b, t, size, size, 3, dtype=np.uint8), zeros(b, dtype=np.int32)
    variables = variables_of(model, *inputs)
    # Taps that fall on an image: of a 3×3 kernel at stride 2, "SAME", the last row and column have
    # one less.
    first = ((16 * 3 - 1) ** 2) * 3 * 8
    second = ((8 * 3 - 1) ** 2) * 8 * 16
    features = 8 * 8 * 16
    lstm, scores = 4 * width * (features + width), width * classes
    forward, gradient = training(model)
    counted = count_flops(forward, variables, *inputs, platform="cuda").products
    expected = 2 * b * t * (first + second + lstm + scores)
    np.testing.assert_allclose(counted, expected, rtol=0.05)
    counted = count_flops(gradient, variables, *inputs, platform="cuda").products
    # No gradient of pixels.
    np.testing.assert_allclose(counted, 3 * expected - 2 * b * t * first, rtol=0.05)


def test_show_attend_and_tell() -> None:
    b, captions, length, regions, depth = 3, 2, 7, 9, 40
    embed, attention, width, vocabulary = 12, 20, 16, 50
    model = SoftAttention(
        vocabulary_size=vocabulary,
        make_cell=partial(LSTMCell, width),
        embed_features=embed,
        attention_features=attention,
        dropout_rate=0.0,
    )
    inputs = (
        zeros(b, regions, depth),
        zeros(b, captions, length, dtype=np.int32),
        zeros(b, captions, dtype=np.int32),
    )
    variables = variables_of(model, *inputs)
    of_image = regions * depth * attention + 2 * depth * width
    of_word = (
        4 * width * (embed + depth + width)  # the LSTM
        + width * (attention + 1)  # query and gate
        + regions * (attention + depth)  # scores of the regions, their sum
        + width * embed + depth * embed  # deep output
        + embed * vocabulary
    )  # fmt: skip
    expected = 2 * b * (of_image + captions * length * of_word)
    forward, gradient = training(model)
    counted = count_flops(forward, variables, *inputs, platform="cuda").products
    np.testing.assert_allclose(counted, expected, rtol=0.05)
    # Regions get no gradient: their keys and initial states cost two matmuls, not three.
    backward = 3 * expected - 2 * b * of_image
    counted = count_flops(gradient, variables, *inputs, platform="cuda").products
    np.testing.assert_allclose(counted, backward, rtol=0.05)


def test_convlstm() -> None:
    b, t, size, depth, width = 2, 5, 12, 3, 4
    model = Recurrent(partial(ConvLSTMCell, width, kernel_size=(5, 5)))
    inputs = zeros(b, t, size, size, depth)
    variables = variables_of(model, inputs)
    taps = (5 * size - 6) ** 2  # 2 + 1 rows are missing at each side
    of_input, of_hidden = taps * depth * 4 * width, taps * width * 4 * width
    forward, gradient = training(model)
    counted = count_flops(forward, variables, inputs, platform="cuda").products
    expected = 2 * b * t * (of_input + of_hidden)
    np.testing.assert_allclose(counted, expected, rtol=0.05)
    counted = count_flops(gradient, variables, inputs, platform="cuda").products
    np.testing.assert_allclose(counted, 3 * expected - 2 * b * t * of_input, rtol=0.05)


def test_a_jax_without_dead_code_elimination_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("jax.interpreters.partial_eval.dce_jaxpr")
    with pytest.raises(RuntimeError, match=r"expected a JAX with .*dce_jaxpr.*, received \d"):
        count_flops(jnp.sin, jnp.ones(3))
