"""Schedules of the inputs of frame prediction: the true frame, or the model's own prediction.

A network that predicts frame by frame reads at step t the true frame t or what it predicted for it.
A schedule draws which, for each sequence and step, from the number of the training step:

- ``TeacherForcing``: always the true frame.
- ``ScheduledSampling`` (Bengio et al., 1506.03099): true frames among those to be predicted become
  rarer until there are none.
- ``ReverseScheduledSampling`` (Wang et al., PredRNN, 2103.09504, section 3.4): in addition, the
  network starts with half of its given frames replaced by predictions, so that it learns long-term
  dependencies, and these become rarer.

The numbers are those of the authors' code (thuml/predrnn-pytorch, ``run.py``) and of OpenSTL
(``utils/predrnn_utils.py``). In evaluation there is no schedule: the given frames are true, all
others predictions.

Each is a ``frame_prediction.Sampling``. The first step always reads the true frame.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flaxnets.configuration import nearest
from flaxnets.typing import Array, PRNGKey


@dataclasses.dataclass(frozen=True)
class TeacherForcing:
    """Every input is the true frame.

    >>> TeacherForcing()(0, jax.random.key(0), 2, 2, 4).tolist()
    [[True, True, True], [True, True, True]]
    """

    def __call__(
        self, step: Array | int, key: PRNGKey, batch_size: int, num_inputs: int, num_frames: int
    ) -> Array:
        """Returns ``use_truth`` (B,T-1), see ``frame_prediction.Sampling``."""
        _check_frames(num_inputs, num_frames)
        return jnp.ones((batch_size, num_frames - 1), bool)


@dataclasses.dataclass(frozen=True)
class ScheduledSampling:
    """Linearly fewer true frames among those to be predicted (1506.03099, section 2.4).

    At training step k = 1, 2, … each is the true one with probability ``start`` − k · ``rate``, and
    from ``stop_step`` finished steps on with probability 0. The given frames are always true.

    >>> [round(float(ScheduledSampling().probability(step)), 4) for step in (0, 24_999, 49_999)]
    [1.0, 0.5, 0.0]

    Attributes:
      start: probability before the first step, in [0,1].
      rate: by which it falls at each step, at least 0.
      stop_step: finished training steps, at least 0.

    Raises:
      ValueError: a value out of range.
    """

    start: float = 1.0
    rate: float = 2e-5
    stop_step: int = 50_000

    def __post_init__(self) -> None:
        _check_range("start", self.start, 0, 1)
        _check_range("rate", self.rate, 0, None)
        _check_range("stop_step", self.stop_step, 0, None)

    def probability(self, step: Array | int) -> Array:
        """Returns the probability of a true frame, () float32 in [0,1].

        Args:
          step: () int, finished training steps.
        """
        falling = jnp.clip(self.start - self.rate * (jnp.asarray(step) + 1.0), 0, 1)
        return jnp.where(step < self.stop_step, falling, 0.0)

    def __call__(
        self, step: Array | int, key: PRNGKey, batch_size: int, num_inputs: int, num_frames: int
    ) -> Array:
        """Returns ``use_truth`` (B,T-1), see ``frame_prediction.Sampling``."""
        _check_frames(num_inputs, num_frames)
        return _draw(key, batch_size, num_inputs, num_frames, 1.0, self.probability(step))


@dataclasses.dataclass(frozen=True)
class ReverseScheduledSampling:
    r"""More and more true frames among the given ones, fewer and fewer thereafter (2103.09504).

    With k finished steps, a given frame but the first is the true one with probability

    .. math::
        ε_k = ½ \;(k < s_1), \quad 1 - ½ \, e^{-(k - s_1) / α} \;(k < s_2), \quad 1

    and a frame to be predicted with probability

    .. math::
        η_k = ½ \;(k < s_1), \quad ½ - ½ \, (k - s_1) / (s_2 - s_1) \;(k < s_2), \quad 0.

    >>> sampling = ReverseScheduledSampling()
    >>> [round(float(sampling.given_probability(step)), 4) for step in (0, 30_000, 50_000)]
    [0.5, 0.8161, 1.0]
    >>> [round(float(sampling.predicted_probability(step)), 4) for step in (0, 30_000, 50_000)]
    [0.5, 0.4, 0.0]

    Attributes:
      first_step: :math:`s_1` (``r_sampling_step_1`` of the authors' code), finished steps until
        which nothing changes, at least 0.
      last_step: :math:`s_2` (``r_sampling_step_2``), from which on the inputs are those of
        evaluation; more than ``first_step``.
      time_constant: α (``r_exp_alpha``), steps, more than 0.

    Raises:
      ValueError: a value out of range.
    """

    first_step: int = 25_000
    last_step: int = 50_000
    time_constant: float = 5_000.0

    def __post_init__(self) -> None:
        _check_range("first_step", self.first_step, 0, None)
        if self.last_step <= self.first_step:
            raise ValueError(
                f"last_step: expected more than first_step = {self.first_step}, "
                f"received {self.last_step}"
            )
        if not self.time_constant > 0:
            raise ValueError(f"time_constant: expected more than 0, received {self.time_constant}")

    def given_probability(self, step: Array | int) -> Array:
        """Returns ε, the probability that a given frame is the true one, () float32 in [½,1]."""
        since = jnp.maximum(jnp.asarray(step) - self.first_step, 0).astype(jnp.float32)
        return jnp.where(step < self.last_step, 1 - 0.5 * jnp.exp(-since / self.time_constant), 1.0)

    def predicted_probability(self, step: Array | int) -> Array:
        """Returns η, the probability of the true frame later on, () float32 in [0,½]."""
        since = jnp.maximum(jnp.asarray(step) - self.first_step, 0).astype(jnp.float32)
        return jnp.maximum(0.5 - 0.5 * since / (self.last_step - self.first_step), 0.0)

    def __call__(
        self, step: Array | int, key: PRNGKey, batch_size: int, num_inputs: int, num_frames: int
    ) -> Array:
        """Returns ``use_truth`` (B,T-1), see ``frame_prediction.Sampling``."""
        _check_frames(num_inputs, num_frames)
        probabilities = self.given_probability(step), self.predicted_probability(step)
        return _draw(key, batch_size, num_inputs, num_frames, *probabilities)


NONE, TEACHER_FORCING, SCHEDULED, REVERSE = "none", "teacher_forcing", "scheduled", "reverse"
NAMES = (NONE, TEACHER_FORCING, SCHEDULED, REVERSE)


@dataclasses.dataclass
class FrameSamplingConfig:
    """Schedule of the inputs of training; ``make_frame_sampling`` builds it."""

    name: str = NONE
    """``none`` (true frames as in evaluation: those that are given), ``teacher_forcing``,
    ``scheduled`` or ``reverse``."""
    start: float = 1.0
    """``scheduled``: probability of a true frame before the first step."""
    rate: float = 2e-5
    """``scheduled``: by which it falls at each step."""
    stop_step: int = 50_000
    """``scheduled``: finished steps from which on no frame after the given ones is true."""
    first_step: int = 25_000
    """``reverse``: finished steps until which nothing changes."""
    last_step: int = 50_000
    """``reverse``: finished steps from which on the inputs are those of evaluation."""
    time_constant: float = 5_000.0
    """``reverse``: of the exponential rise of true frames among the given ones, steps."""


def make_frame_sampling(config: FrameSamplingConfig, *, field: str = "sampling") -> Any:
    """Returns the schedule that a configuration describes; None for ``none``.

    Args:
      config: the configuration.
      field: its path, for errors.

    Raises:
      ValueError: an unknown name, or a value out of range.

    >>> make_frame_sampling(FrameSamplingConfig("reverse", last_step=40_000)).last_step
    40000
    """
    if config.name not in NAMES:
        raise ValueError(f"{field}.name: unknown {config.name!r}{nearest(config.name, NAMES)}")
    if config.name == NONE:
        return None
    if config.name == TEACHER_FORCING:
        return TeacherForcing()
    try:
        if config.name == SCHEDULED:
            return ScheduledSampling(config.start, config.rate, config.stop_step)
        return ReverseScheduledSampling(config.first_step, config.last_step, config.time_constant)
    except ValueError as error:
        raise ValueError(f"{field}.{error}") from error


def _draw(
    key: PRNGKey,
    batch_size: int,
    num_inputs: int,
    num_frames: int,
    given: Array | float,
    predicted: Array | float,
) -> Array:
    """Draws (B,T-1) bool, True with one probability for given frames but the first, and another."""
    time = jnp.arange(num_frames - 1)
    probabilities = jnp.where(time < num_inputs, given, predicted)
    drawn = jax.random.uniform(key, (batch_size, num_frames - 1)) < probabilities
    return drawn | (time == 0)


def _check_frames(num_inputs: int, num_frames: int) -> None:
    if not 1 <= num_inputs < num_frames:
        raise ValueError(
            f"num_inputs: expected 1 to num_frames - 1 = {num_frames - 1}, received {num_inputs}"
        )


def _check_range(name: str, value: float, least: float, most: float | None) -> None:
    if value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"in [{least},{most}]"
        raise ValueError(f"{name}: expected {bounds}, received {value}")
