"""The CTC loss against PyTorch, an enumeration of all alignments, and itself."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.decoders.ctc import ctc_losses, fits, required_steps
from flaxnets.decoders.ctc.loss import SMALLEST
from tests.flaxnets.decoders.ctc.record_torch import BLANKS, FIXTURE, record
from tests.flaxnets.decoders.ctc.reference import all_texts

CLASSES = 4
STEPS = np.array([6, 5, 4, 1, 0, 3])
LABELS = np.array([[1, 1, 2], [3, 2, 0], [0, 0, 0], [2, 0, 0], [0, 0, 0], [2, 2, 2]])
LENGTHS = np.array([3, 2, 0, 1, 0, 3])  # The last one needs five steps and has three.


def draw_logits(dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((6, 6, CLASSES)).astype(dtype)


@partial(jax.jit, static_argnames="blank")
def run(
    logits: Any, steps: Any, labels: Any, lengths: Any, blank: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Returns the losses and the gradient of their sum."""

    def total(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        losses = ctc_losses(logits, steps, labels, lengths, blank=blank)
        return jnp.sum(losses), losses

    (_, losses), gradient = jax.value_and_grad(total, has_aux=True)(logits)
    return losses, gradient


@pytest.mark.parametrize("blank", BLANKS)
def test_equals_pytorch(blank: int) -> None:
    recorded = np.load(FIXTURE)
    with jax.enable_x64(True):
        losses, gradient = run(
            recorded[f"logits_{blank}"],
            recorded["steps"],
            recorded[f"labels_{blank}"],
            recorded["lengths"],
            blank,
        )
        losses, gradient = np.asarray(losses), np.asarray(gradient)
    assert losses.dtype == np.float64
    np.testing.assert_allclose(losses, recorded[f"losses_{blank}"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(gradient, recorded[f"gradients_{blank}"], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(losses > 0, np.arange(8) != 6)  # Which does not fit.


def test_the_recording_is_pytorchs() -> None:
    pytest.importorskip("torch")
    recorded = np.load(FIXTURE)
    for name, values in record().items():
        np.testing.assert_allclose(values, recorded[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("blank", [0, 3])
def test_equals_the_sum_over_all_alignments(blank: int) -> None:
    labels = LABELS - 1 if blank else LABELS  # Padding becomes -1.
    logits = draw_logits()
    losses, _ = run(logits, STEPS, labels, LENGTHS, blank)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    for row in range(5):
        texts = all_texts(log_probs[row, : STEPS[row]], blank)
        expected = texts[tuple(labels[row, : LENGTHS[row]].tolist())]
        np.testing.assert_allclose(losses[row], -expected, rtol=1e-5, atol=1e-6)
    assert losses[5] == 0


def test_evaluation_without_a_gradient_gives_the_same_losses() -> None:
    logits = draw_logits()
    alone = jax.jit(ctc_losses)(logits, STEPS, LABELS, LENGTHS)
    np.testing.assert_allclose(alone, run(logits, STEPS, LABELS, LENGTHS)[0], rtol=1e-6)


def test_the_gradient_is_that_of_the_values() -> None:
    with jax.enable_x64(True):
        logits, direction = draw_logits(np.float64), np.random.default_rng(2).normal(size=(6, 6, 4))
        gradient = np.asarray(run(logits, STEPS, LABELS, LENGTHS)[1])
        up, down = (
            np.asarray(run(logits + h * direction, STEPS, LABELS, LENGTHS)[0]).sum()
            for h in (1e-5, -1e-5)
        )
    np.testing.assert_allclose((up - down) / 2e-5, (gradient * direction).sum(), rtol=1e-7)
    valid = np.arange(6) < np.where(np.arange(6) == 5, 0, STEPS)[:, None]
    assert np.all(np.abs(gradient).sum(axis=2)[valid] > 0)
    np.testing.assert_array_equal(np.asarray(gradient)[~valid], 0)
    np.testing.assert_allclose(gradient.sum(axis=2), 0, atol=1e-12)


def test_padding_changes_nothing() -> None:
    logits = draw_logits()
    losses, gradient = run(logits, STEPS, LABELS, LENGTHS)
    for filling in (np.nan, np.inf, 1e9):
        padded = np.where((np.arange(6) < STEPS[:, None])[..., None], logits, filling)
        labels = np.where(np.arange(3) < LENGTHS[:, None], LABELS, -7)
        again, gradient_again = run(padded.astype(np.float32), STEPS, labels, LENGTHS)
        np.testing.assert_array_equal(again, losses)
        np.testing.assert_array_equal(gradient_again, gradient)
    wider = np.pad(logits, ((0, 0), (0, 3), (0, 0)), constant_values=5)
    longer = np.pad(LABELS, ((0, 0), (0, 2)), constant_values=3)
    again, gradient_again = run(wider, STEPS, longer, LENGTHS)
    np.testing.assert_allclose(again, losses, rtol=1e-6)
    np.testing.assert_allclose(gradient_again[:, :6], gradient, atol=1e-6)
    np.testing.assert_array_equal(gradient_again[:, 6:], 0)


@pytest.mark.parametrize("size", [1e4, 1e20, 1e38])
def test_extreme_logits_stay_finite(size: float) -> None:
    logits = np.sign(draw_logits()) * np.float32(size)
    logits[0, 2, 1:] = -np.inf  # Masked classes.
    losses, gradient = run(logits, STEPS, LABELS, LENGTHS)
    assert np.isfinite(losses).all()
    assert np.isfinite(gradient).all()
    assert losses.min() >= 0
    assert losses.max() >= min(size, -SMALLEST)  # Confident and wrong.
    assert np.abs(gradient).max() <= 1


def test_a_step_that_is_nan_shows() -> None:
    logits = draw_logits()
    logits[0, 0, 0] = np.nan
    losses, _ = run(logits, STEPS, LABELS, LENGTHS)
    np.testing.assert_array_equal(np.isnan(losses), np.arange(6) == 0)


def test_bfloat16_is_computed_in_float32() -> None:
    logits = jnp.asarray(draw_logits(), jnp.bfloat16)
    losses, gradient = run(logits, STEPS, LABELS, LENGTHS)
    exact, _ = run(logits.astype(jnp.float32), STEPS, LABELS, LENGTHS)
    assert losses.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(losses, exact, rtol=1e-6)


def test_labels_that_fit() -> None:
    assert required_steps(jnp.asarray(LABELS), LENGTHS).tolist() == [4, 2, 0, 1, 0, 5]
    assert fits(jnp.asarray(LABELS), LENGTHS, STEPS).tolist() == [True] * 5 + [False]
    assert fits(jnp.array([[2, 2, 9]]), jnp.array([1]), jnp.array([1])).tolist() == [True]


@pytest.mark.parametrize("shape", [(2, 0, 3, 2), (2, 3, 3, 0)])
def test_batches_without_steps_or_labels(shape: tuple[int, int, int, int]) -> None:
    b, s, k, length = shape
    none = np.zeros(b, np.int32)
    losses, _ = run(np.zeros((b, s, k), np.float32), none + s, np.zeros((b, length), int), none)
    np.testing.assert_allclose(losses, s * np.log(3), rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logits": np.zeros((6, 6), np.float32)}, "logits: expected"),
        ({"logits": np.zeros((6, 6, 4), int)}, "logits: expected"),
        ({"labels": np.zeros((5, 3), int)}, "labels: expected shape"),
        ({"labels": np.zeros((6, 3), np.float32)}, "labels: expected an integer"),
        ({"steps": np.array([7] * 6)}, "lengths: expected"),
        ({"label_lengths": np.array([4] * 6)}, "label_lengths: expected"),
        ({"blank": 4}, "blank: expected"),
    ],
)
def test_bad_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "logits": draw_logits(),
        "steps": STEPS,
        "labels": LABELS,
        "label_lengths": LENGTHS,
    }
    with pytest.raises(ValueError, match=message):
        ctc_losses(**(arguments | changed))
