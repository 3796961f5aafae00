"""Schedules of the inputs of frame prediction, against the formulas and the authors' numbers."""

import math
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from flaxnets.tasks.frame_sampling import (
    FrameSamplingConfig,
    ReverseScheduledSampling,
    ScheduledSampling,
    TeacherForcing,
    make_frame_sampling,
)

INPUTS, FRAMES = 10, 20
draw = jax.jit(
    lambda sampling, step: sampling(step, jax.random.key(0), 2_000, INPUTS, FRAMES),
    static_argnums=0,
)


def reference_eta(step: int) -> float:
    """Returns what the loop of the authors' ``schedule_sampling`` has reached after its steps."""
    eta = 1.0
    for number in range(step + 1):
        eta = eta - 2e-5 if number < 50_000 else 0.0
    return eta


@pytest.mark.parametrize("step", [0, 1, 999, 30_000, 49_998, 50_000, 60_000])
def test_scheduled_sampling_falls_as_the_authors_loop(step: int) -> None:
    actual = float(ScheduledSampling().probability(step))
    assert actual == pytest.approx(reference_eta(step), abs=1e-6)


@pytest.mark.parametrize("step", [0, 24_999, 25_000, 27_500, 40_000, 49_999, 50_000, 10**7])
@pytest.mark.parametrize("alpha", [2_500.0, 5_000.0])  # v2 on Moving MNIST; OpenSTL.
def test_reverse_scheduled_sampling_follows_the_papers_formulas(step: int, alpha: float) -> None:
    sampling = ReverseScheduledSampling(time_constant=alpha)
    # ε_k = ε_e − (ε_e − ε_s) exp(−k/α) with ε_s = ½, ε_e = 1; η falls linearly.
    after = step - 25_000
    given = 0.5 if after < 0 else 1 - 0.5 * math.exp(-after / alpha) if after < 25_000 else 1.0
    predicted = 0.5 if after < 0 else 0.5 - 0.5 / 25_000 * after if after < 25_000 else 0.0
    assert float(sampling.given_probability(step)) == pytest.approx(given, abs=1e-6)
    assert float(sampling.predicted_probability(step)) == pytest.approx(predicted, abs=1e-6)


def test_the_share_of_true_frames_is_the_probability() -> None:
    for step in (0, 25_000, 40_000, 50_000):
        for sampling, given, predicted in (
            (ScheduledSampling(), 1.0, ScheduledSampling().probability(step)),
            (
                ReverseScheduledSampling(),
                ReverseScheduledSampling().given_probability(step),
                ReverseScheduledSampling().predicted_probability(step),
            ),
        ):
            drawn = np.asarray(draw(sampling, step))
            assert drawn.shape == (2_000, FRAMES - 1)
            assert drawn[:, 0].all()
            for part, probability in ((drawn[:, 1:INPUTS], given), (drawn[:, INPUTS:], predicted)):
                deviation = math.sqrt(probability * (1 - probability) / part.size)
                assert abs(part.mean() - probability) <= 5 * deviation + 1e-6


def test_at_the_end_the_inputs_are_those_of_evaluation() -> None:
    expected = np.broadcast_to(np.arange(FRAMES - 1) < INPUTS, (2_000, FRAMES - 1))
    for sampling in (ScheduledSampling(), ReverseScheduledSampling()):
        np.testing.assert_array_equal(draw(sampling, 50_000), expected)
    assert np.asarray(draw(TeacherForcing(), 0)).all()


def test_rows_steps_and_keys_are_drawn_separately() -> None:
    drawn = np.asarray(draw(ReverseScheduledSampling(), 0))[:, 1:].astype(float)
    correlation = np.corrcoef(drawn.T) - np.eye(FRAMES - 2)
    assert np.abs(correlation).max() < 0.12
    other = ReverseScheduledSampling()(0, jax.random.key(1), 2_000, INPUTS, FRAMES)
    assert (np.asarray(other)[:, 1:] != drawn).mean() > 0.4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(ScheduledSampling, start=1.5), r"start: expected in \[0,1\], received 1.5"),
        (partial(ScheduledSampling, rate=-1.0), r"rate: expected at least 0, received -1.0"),
        (
            partial(ReverseScheduledSampling, last_step=25_000),
            "last_step: expected more than first_step = 25000, received 25000",
        ),
        (
            partial(ReverseScheduledSampling, time_constant=0.0),
            "time_constant: expected more than 0, received 0.0",
        ),
    ],
)
def test_values_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("num_inputs", [0, FRAMES])
def test_a_horizon_beyond_the_sequence_is_refused(num_inputs: int) -> None:
    for sampling in (TeacherForcing(), ScheduledSampling(), ReverseScheduledSampling()):
        with pytest.raises(ValueError, match="num_inputs: expected 1 to num_frames - 1 = 19"):
            sampling(0, jax.random.key(0), 1, num_inputs, FRAMES)


def test_a_schedule_is_chosen_by_name() -> None:
    made = [make_frame_sampling(FrameSamplingConfig(name)) for name in ("scheduled", "reverse")]
    assert made == [ScheduledSampling(), ReverseScheduledSampling()]
    assert make_frame_sampling(FrameSamplingConfig("teacher_forcing")) == TeacherForcing()
    assert make_frame_sampling(FrameSamplingConfig()) is None
    with pytest.raises(ValueError, match=r"sampling\.name: unknown 'revers'; did you mean"):
        make_frame_sampling(FrameSamplingConfig("revers"))
    with pytest.raises(ValueError, match=r"task.sampling.start: expected in \[0,1\]"):
        make_frame_sampling(FrameSamplingConfig("scheduled", start=2.0), field="task.sampling")
