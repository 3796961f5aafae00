"""Encoder over columns: padding invariance of every kind of encoder, strides, errors."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.encoders.columns import ColumnEncoder, as_images, column_stride
from flaxnets.encoders.config import ENCODERS
from flaxnets.encoders.encoder import RawColumns
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.encoders.vgg import CRNNVGG

SMALL = {
    "crnn_vgg": lambda: CRNNVGG((4, 4, 8, 8)),
    "batch": lambda: SmallCNN((4, 8), (2, 2)),
    "layer": lambda: SmallCNN((4, 8), (2, 2), normalization="layer", downsampling="max"),
    "group": lambda: SmallCNN((8, 8), (2, 1), normalization="group"),
    "none": lambda: SmallCNN((4, 8), (2, 2), normalization="none", downsampling="average"),
    "rows_alone": lambda: SmallCNN((4, 8), (4, 2), column_strides=(1, 1), downsampling="max"),
    "raw": RawColumns,
    "deep": lambda: SmallCNN((4, 8), (2, 2), depth=2, kernel_size=5, remat="full"),
}
OF_THE_GRID = {
    "resnet18": "stage_2",
    "efficientnet_lite0": "stage_3",
    "mobilenet_v2": "stage_3",
    "vgg11_bn": "pool3",
    "googlenet": "inception3b",
}
WIDTHS = (64, 37, 3)


def lines(width: int, height: int = 32, channels: int = 1, seed: int = 0) -> np.ndarray:
    shape = (len(WIDTHS), height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def outputs_of(columns: ColumnEncoder, images: np.ndarray, lengths: object, **options: Any) -> Any:
    @functools.partial(jax.jit, static_argnames=("train",))
    def run(images: jax.Array, lengths: jax.Array, train: bool = False) -> Any:
        variables = columns.init(jax.random.key(1), images, lengths, train=False)
        # Biases and running means of zero would hide what padding makes of them.
        variables = jax.tree.map(lambda x: x + 0.1, variables)
        return columns.apply(
            variables, images, lengths, train=train, mutable=["batch_stats"] if train else False
        )

    return run(images, jnp.asarray(lengths), **options)


def of(name: str, encoder: nn.Module) -> ColumnEncoder:
    return ColumnEncoder(encoder, column_stride(encoder, 32))


@pytest.mark.slow_after(4)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("train", [False, True])
def test_padding_has_no_effect(name: str, train: bool) -> None:
    columns = of(name, SMALL[name]())
    images = lines(64)
    other = images.copy()
    for row, width in enumerate(WIDTHS):
        other[row, :, width:] = 255 - other[row, :, width:]
    (outputs, steps), *updated = np_tree(outputs_of(columns, images, WIDTHS, train=train), train)
    (others, _), *others_updated = np_tree(outputs_of(columns, other, WIDTHS, train=train), train)
    wide = np.pad(images, ((0, 0), (0, 0), (0, 32), (0, 0)), constant_values=77)
    (wider, _), *wide_updated = np_tree(outputs_of(columns, wide, WIDTHS, train=train), train)
    assert steps.tolist() == [-(-width // columns.stride) for width in WIDTHS]
    assert np.abs(outputs[0]).max() > 0
    for row, count in enumerate(steps):
        assert not outputs[row, count:].any()
    np.testing.assert_array_equal(outputs, others)
    np.testing.assert_allclose(outputs, wider[:, : outputs.shape[1]], atol=1e-5)
    for changed in (others_updated, wide_updated):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), updated, changed)
    if not train:
        row = 1
        alone, _ = outputs_of(
            columns, images[row : row + 1, :, : WIDTHS[row]], WIDTHS[row : row + 1]
        )
        np.testing.assert_allclose(alone[0], outputs[row, : steps[row]], rtol=1e-4, atol=1e-5)


def np_tree(found: object, train: bool) -> tuple:
    result = jax.tree.map(np.asarray, found)
    return result if train else (result,)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    # The deep ones are slow.
    [
        pytest.param(name, marks=[pytest.mark.stress] * (name not in ("resnet18", "vgg11_bn")))
        for name in OF_THE_GRID
    ],
)
def test_encoders_of_the_grid(name: str) -> None:
    level = OF_THE_GRID[name]
    encoder = ENCODERS[name](**({"levels": (level,)} if level else {}))
    columns = of(name, encoder)
    images = lines(128)
    outputs, steps = outputs_of(columns, images, [128, 70, 5])
    alone, _ = outputs_of(columns, images[1:2, :, :70], [70])
    scale = np.abs(outputs).max()
    np.testing.assert_allclose(alone[0] / scale, outputs[1, : steps[1]] / scale, atol=1e-4)


def test_gradient_reads_no_padding() -> None:
    columns = ColumnEncoder(CRNNVGG((4, 4, 4, 4)), 4, pool="mean")
    images = lines(64).astype(np.float32) / 255
    images[1, :, 37:] = np.nan
    lengths = jnp.array(WIDTHS)
    variables = columns.init(jax.random.key(0), jnp.nan_to_num(images), lengths, train=False)

    @jax.jit
    def gradient(params: Any, images: jax.Array) -> Any:
        def loss(params: Any, images: jax.Array) -> jax.Array:
            (outputs, _), _ = columns.apply(
                {**variables, "params": params},
                images,
                lengths,
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.square(outputs).sum()

        return jax.grad(loss, argnums=(0, 1))(params, images)

    of_params, of_images = gradient(variables["params"], images)
    expected, _ = gradient(variables["params"], jnp.nan_to_num(images))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), of_params, expected)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(of_params))
    assert not np.asarray(of_images)[1, :, 37:].any()


def test_masked_examples_do_not_count() -> None:
    columns = ColumnEncoder(CRNNVGG((4, 4, 4, 4), batch_norm=True), 4)
    images, lengths = lines(32).astype(np.float32), jnp.array([32, 20, 8])
    mask = jnp.array([True, True, False])

    @jax.jit
    def statistics(images: jax.Array) -> object:
        variables = columns.init(jax.random.key(0), images, lengths, train=False)
        return columns.apply(variables, images, lengths, mask, train=True, mutable=["batch_stats"])[
            1
        ]

    changed = images.copy()
    changed[2] = np.nan
    before, after = statistics(images), statistics(changed)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_spectrograms_are_images_of_bands() -> None:
    sound = np.random.default_rng(0).normal(size=(2, 9, 4)).astype(np.float32)  # (B,T,M)
    images = as_images(sound)
    assert images.shape == (2, 4, 9, 1)
    assert images[1, 3, 8, 0] == sound[1, 8, 3]
    with pytest.raises(ValueError, match=r"\(B,H,W,C\) or \(B,T,M\)"):
        as_images(sound[0])


def test_strides_and_errors() -> None:
    assert column_stride(CRNNVGG((4, 4, 4, 4)), 32) == 4
    assert column_stride(ENCODERS["resnet18"](levels=("stage_2",)), 48) == 8
    assert column_stride(ENCODERS["sound_cnn"](), 64) == 1
    assert column_stride(SmallCNN((4, 4), (4, 2), column_strides=(2, 1)), 32) == 2
    assert column_stride(RawColumns(), 64) == 1
    with pytest.raises(ValueError, match="every so many"):
        column_stride(ENCODERS["alexnet"](), 200)
    with pytest.raises(ValueError, match="earlier level"):
        column_stride(CRNNVGG((4, 4, 4, 4), levels=("pooled",)), 32)
    with pytest.raises(ValueError, match="pool: expected"):
        outputs_of(ColumnEncoder(CRNNVGG((4, 4, 4, 4)), 4, pool="sum"), lines(32), [32, 1, 1])
    with pytest.raises(ValueError, match="one column for 8"):
        outputs_of(ColumnEncoder(CRNNVGG((4, 4, 4, 4)), 8), lines(32), [32, 1, 1])
    with pytest.raises(ValueError, match="four positive"):
        outputs_of(ColumnEncoder(CRNNVGG((4, 4)), 4), lines(32), [32, 1, 1])


def test_parameters_of_the_paper() -> None:
    lines = jnp.zeros((1, 32, 100, 1), jnp.uint8)
    init = functools.partial(CRNNVGG().init, train=False)
    params = jax.eval_shape(init, jax.random.key(0), lines)["params"]
    # Kernels and biases of the table's convolutions; BatchNorm's two vectors instead of biases.
    kernels = [(1, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    expected = sum(9 * i * o for i, o in kernels) + 4 * 512 * 512
    expected += 64 + 128 + 256 + 256 + 2 * 512 + 2 * 512 + 512
    assert sum(np.prod(x.shape) for x in jax.tree.leaves(params)) == expected
