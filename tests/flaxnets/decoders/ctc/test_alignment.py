"""The alignment of a given text against an enumeration of all alignments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.decoders.ctc import align
from tests.flaxnets.decoders.ctc.reference import best_path, draw_log_probs, spans_of

STEPS = np.array([6, 6, 5, 5, 3, 1, 0, 2])
LABELS = np.array(
    [[1, 2, 2], [2, 2, 0], [1, 1, 1], [0, 0, 0], [2, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]]
)
LENGTHS = np.array([3, 2, 3, 0, 2, 1, 0, 2])  # The last one does not fit into its two steps.


@pytest.mark.parametrize("blank", [0, 2])
def test_spans_are_those_of_the_best_alignment(blank: int) -> None:
    log_probs = draw_log_probs(3, 8, 6, 3)
    labels = LABELS if blank == 0 else LABELS - 1
    spans = jax.jit(align, static_argnames="blank")(log_probs, STEPS, labels, LENGTHS, blank=blank)
    for row, (steps, length) in enumerate(zip(STEPS[:-1], LENGTHS[:-1], strict=True)):
        text = tuple(labels[row, :length].tolist())
        expected = spans_of(best_path(log_probs[row, :steps], text, blank), blank)
        found = list(zip(spans.starts[row].tolist(), spans.ends[row].tolist(), strict=True))
        assert found == expected + [(0, 0)] * (3 - length)
        peaks = [
            np.exp(log_probs[row, a:b, label].max())
            for (a, b), label in zip(expected, text, strict=True)
        ]
        np.testing.assert_allclose(spans.confidences[row, :length], peaks, rtol=1e-5)
        assert not spans.confidences[row, length:].any()
    assert not any(field[-1].any() for field in spans)


def test_padding_changes_nothing() -> None:
    log_probs = draw_log_probs(3, 8, 6, 3)
    spans = align(log_probs, STEPS, LABELS, LENGTHS)
    log_probs[np.arange(6) >= STEPS[:, None]] = np.nan
    labels = np.where(np.arange(3) < LENGTHS[:, None], LABELS, 99)
    for field, again in zip(spans, align(log_probs, STEPS, labels, LENGTHS), strict=True):
        np.testing.assert_array_equal(again, field)


def test_logits_need_not_be_normalised() -> None:
    log_probs = draw_log_probs(3, 8, 6, 3)
    shifted = jnp.asarray(log_probs) + 7.0
    spans = align(log_probs, STEPS, LABELS, LENGTHS)
    for field, again in zip(spans, align(shifted, STEPS, LABELS, LENGTHS), strict=True):
        np.testing.assert_allclose(again, field, atol=1e-5)
