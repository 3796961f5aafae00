r"""Connectionist temporal classification: the loss −log p(labels | logits), and what fits.

Graves et al., "Connectionist Temporal Classification" (ICML 2006). A text y of n labels is written
as states: blanks :math:`b_0 … b_n` and labels :math:`l_1 … l_n` between them. With emission
probabilities :math:`p_t`, an alignment's probability is the product of its steps, and

.. math::
    m_t(i) &= b_t(i) + l_t(i) \\
    b_{t+1}(i) &= m_t(i) \, p_{t+1}(\text{blank}) \\
    l_{t+1}(i+1) &= (l_t(i+1) + [y_i = y_{i+1}] \, b_t(i) + [y_i ≠ y_{i+1}] \, m_t(i))
                    \, p_{t+1}(y_{i+1})

sums over all of them (equations 5 to 8, two sums for each label instead of three). It is computed
in log space. The gradient is the closed form (equation 15)

.. math::
    \frac{∂ \, {−\log p(y)}}{∂ \text{logits}_t(k)} = \mathrm{softmax}(\text{logits}_t)(k) − γ_t(k)

where γ is the posterior of label k at step t, from the forward and the backward variables. Both are
the same recursion, the backward one on reversed steps and labels, so one scan of a doubled batch
computes both; autodiff never runs through the scan.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxnets.layers.padding import check_counts, check_lengths
from flaxnets.typing import Array

IMPOSSIBLE = -1e36
"""Logarithm of zero. It is finite, so that no difference of two of them is NaN, and so far below
``SMALLEST`` that thousands of steps of that log-probability remain possible."""
SMALLEST = -1e30
"""Smallest log-probability of one step; smaller ones, such as those of masked classes, are raised
to it."""


def ctc_losses(
    logits: Array, steps: Array, labels: Array, label_lengths: Array, *, blank: int = 0
) -> Array:
    """Returns −log p(labels | logits) of each sequence, in nats.

    The sum over all alignments is exact. Values in padding, NaN included, change neither losses nor
    gradients. Labels that do not fit into their steps (see ``fits``) have the loss 0 and the
    gradient 0. The gradient is defined once, in reverse mode.

    A text of one label in two steps has three alignments, here of probability 1/4 each:

    >>> losses = ctc_losses(jnp.zeros((1, 2, 2)), jnp.array([2]), jnp.array([[1]]), jnp.array([1]))
    >>> print(jnp.exp(-losses))
    [0.75]

    Args:
      logits: (B,S,K) float, not normalised; bfloat16 and float16 are computed in float32.
      steps: (B,) integers in [0,S], valid steps.
      labels: (B,L) integers in [0,K), none of them ``blank``; padded with anything.
      label_lengths: (B,) integers in [0,L]; 0 is the empty text.
      blank: class of the blank, in [0,K).

    Returns:
      (B,) float32, or float64 for such logits; at least 0 and finite for finite logits. NaN where a
      valid step holds NaN.

    Raises:
      ValueError: shapes or dtypes that do not agree, or a blank outside of the classes.
    """
    steps, labels, label_lengths = check_arguments(logits, steps, labels, label_lengths, blank)
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # Ahead of everything else: 0 · NaN is NaN, so padding must not enter the softmax.
    valid = jnp.arange(logits.shape[1]) < steps[:, None]
    return _losses(jnp.where(valid[..., None], wide, 0), steps, labels, label_lengths, blank)


def required_steps(labels: Array, label_lengths: Array) -> Array:
    """Returns the smallest number of steps into which labels fit, (B,) int32.

    It is one for each label, and one for the blank between two equal labels.

    >>> required_steps(jnp.array([[1, 1, 2, 2], [3, 0, 0, 0]]), jnp.array([3, 1])).tolist()
    [4, 1]

    Args:
      labels: (B,L) integers, padded with anything.
      label_lengths: (B,) integers in [0,L].
    """
    positions = jnp.arange(1, labels.shape[1])
    repeated = (labels[:, 1:] == labels[:, :-1]) & (positions < jnp.asarray(label_lengths)[:, None])
    return (label_lengths + jnp.sum(repeated, axis=1)).astype(jnp.int32)


def fits(labels: Array, label_lengths: Array, steps: Array) -> Array:
    """Returns whether each text has an alignment, (B,) bool: ``required_steps`` <= ``steps``.

    >>> fits(jnp.array([[1, 1]]), jnp.array([2]), jnp.array([2])).tolist()
    [False]

    Args:
      labels: (B,L) integers, padded with anything.
      label_lengths: (B,) integers in [0,L].
      steps: (B,) integers, valid steps.
    """
    return required_steps(labels, label_lengths) <= steps


def check_arguments(
    logits: Array, steps: Array, labels: Array, label_lengths: Array, blank: int
) -> tuple[Array, Array, Array]:
    """Returns steps (B,), labels (B,L) and label lengths (B,) as int32, padded labels as 0.

    Raises:
      ValueError: as ``ctc_losses``.
    """
    b, s, k = check_logits("logits", logits, blank)
    labels = jnp.asarray(labels)
    if labels.ndim != 2 or labels.shape[0] != b:
        raise ValueError(f"labels: expected shape ({b},L), received {labels.shape}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels: expected an integer dtype, received {labels.dtype}")
    lengths = check_counts("label_lengths", label_lengths, (b,), labels.shape[1])
    kept = jnp.arange(labels.shape[1]) < lengths[:, None]
    return (
        check_lengths(steps, b, s),
        jnp.where(kept, labels, 0).astype(jnp.int32).clip(0, k - 1),
        lengths,
    )


def check_logits(name: str, logits: Array, blank: int) -> tuple[int, int, int]:
    """Returns B, S and K of logits or log-probabilities.

    Raises:
      ValueError: not (B,S,K) floats, or a blank outside of [0,K).
    """
    if logits.ndim != 3 or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"{name}: expected (B,S,K) of a float dtype, received shape {logits.shape} of "
            f"{logits.dtype}"
        )
    b, s, k = logits.shape
    if not 0 <= blank < k:
        raise ValueError(f"blank: expected a class in [0,{k}), received {blank}")
    return b, s, k


def log_add(x: Array, y: Array) -> Array:
    """Returns log(exp(x) + exp(y)) of finite numbers.

    ``jnp.logaddexp`` costs more, because it allows for infinities. ``log1p`` for ``log`` would make
    the whole gradient 1.5 times as slow on a CPU, for digits that the sum with the maximum drops.
    """
    return jnp.maximum(x, y) + jnp.log(1 + jnp.exp(-jnp.abs(x - y)))


class Emissions(NamedTuple):
    """Log-probabilities of one step of the states of texts, time first.

    At steps beyond ``steps`` the blank has probability 1 and a label 0, so that what has been
    summed up stays and no later selection is needed.
    """

    blank: Array
    """(S,B,1)."""
    label: Array
    """(S,B,L+1): label i at column i; column 0 belongs to no label."""


def emissions(log_probs: Array, steps: Array, labels: Array, blank: int) -> Emissions:
    """Returns the emissions of the labels' states, from ``log_probs`` (B,S,K)."""
    b, s, _ = log_probs.shape
    valid = (jnp.arange(s) < steps[:, None])[..., None]
    of_labels = jnp.take_along_axis(log_probs, labels[:, None, :], axis=2)  # (B,S,L)
    of_labels = jnp.where(valid, of_labels, IMPOSSIBLE)
    of_blank = jnp.where(valid, log_probs[..., blank : blank + 1], 0)
    column = jnp.zeros((b, s, 1), log_probs.dtype)
    label = jnp.concatenate([column, of_labels], axis=2)
    return Emissions(of_blank.swapaxes(0, 1), label.swapaxes(0, 1))


def repeats(labels: Array) -> Array:
    """Returns whether label i+1 equals label i at column i, (B,L) bool; column 0 is False."""
    return jnp.pad(labels[:, 1:] == labels[:, :-1], ((0, 0), (1, 0)))[:, : labels.shape[1]]


def bounded_log_softmax(logits: Array) -> Array:
    """Returns log-probabilities of at least ``SMALLEST``."""
    return jnp.maximum(jax.nn.log_softmax(logits), SMALLEST)


_State = tuple[Array, Array]
"""Forward variables b (...,L+1) and l (...,L+1), whose column 0 is impossible."""


def _advance(state: _State, emission: Emissions, repeated: Array) -> _State:
    blanks, labels = state
    either = log_add(blanks, labels)
    before = jnp.where(repeated, blanks[..., :-1], either[..., :-1])
    shift = (*[(0, 0)] * (before.ndim - 1), (1, 0))
    before = jnp.pad(before, shift, constant_values=IMPOSSIBLE)
    return either + emission.blank, log_add(labels, before) + emission.label


def _start(first: Array, num_labels: int, dtype: jnp.dtype) -> _State:
    """Returns the variables before the first step: in blank ``first`` (...) with probability 1."""
    at_first = jnp.arange(num_labels + 1) == first[..., None]
    impossible = jnp.full(at_first.shape, IMPOSSIBLE, dtype)
    return jnp.where(at_first, jnp.zeros((), dtype), impossible), impossible


def _total(state: _State, label_lengths: Array) -> Array:
    """Returns log p (N,): the last blank or the last label."""
    return jnp.take_along_axis(log_add(*state), label_lengths[:, None], axis=1)[:, 0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _losses(logits: Array, steps: Array, labels: Array, lengths: Array, blank: int) -> Array:
    emitted = emissions(bounded_log_softmax(logits), steps, labels, blank)
    repeated = repeats(labels)
    start = _start(jnp.zeros_like(lengths), labels.shape[1], logits.dtype)

    def step(state: _State, emission: Emissions) -> tuple[_State, None]:
        return _advance(state, emission, repeated), None

    last, _ = jax.lax.scan(step, start, emitted)
    # Rounding can make the sum of all alignments exceed 1.
    losses = jnp.maximum(-_total(last, lengths), 0)
    return jnp.where(fits(labels, lengths, steps), losses, 0)


def _losses_forward(
    logits: Array, steps: Array, labels: Array, lengths: Array, blank: int
) -> tuple[Array, Array]:
    """Returns the losses and their gradient (B,S,K), which is all that the backward pass needs."""
    num_labels, classes = labels.shape[1], logits.shape[2]
    log_probs = bounded_log_softmax(logits)
    emitted = emissions(log_probs, steps, labels, blank)
    # The reversed problem: padded steps come first, padded labels too, so it starts in the blank
    # after the last label, which in reversed order has the number L - length.
    reverse = jax.tree.map(lambda x: x[::-1], emitted)
    label = jnp.concatenate([reverse.label[..., :1], reverse.label[..., :0:-1]], axis=2)
    # Stacked on an axis of their own: a batch that is sharded over devices stays where it is.
    both = Emissions(
        jnp.stack([emitted.blank, reverse.blank], axis=1),
        jnp.stack([emitted.label, label], axis=1),
    )
    repeated = jnp.stack([repeats(labels), repeats(labels[:, ::-1])])  # (2,B,L)
    first = jnp.stack([jnp.zeros_like(lengths), num_labels - lengths])

    def step(state: _State, emission: Emissions) -> tuple[_State, _State]:
        state = _advance(state, emission, repeated)
        return state, state

    start = _start(first, num_labels, logits.dtype)
    last, (blanks, of_labels) = jax.lax.scan(step, start, both)  # each (S,2,B,L+1)
    losses = jnp.maximum(-_total((last[0][0], last[1][0]), lengths), 0)

    # Forward times backward variables count the emission of their own step twice.
    blank_posterior = blanks[:, 0] + blanks[::-1, 1, :, ::-1] - emitted.blank
    label_posterior = of_labels[:, 0, :, 1:] + of_labels[::-1, 1, :, :0:-1]
    label_posterior -= emitted.label[..., 1:]  # (S,B,L)
    # Divided by their own sum, which is p(y) at every step: at losses of thousands of nats the
    # rounding of p(y) itself would show.
    joined = jnp.concatenate([blank_posterior, label_posterior], axis=2)
    posterior = jax.nn.softmax(joined).swapaxes(0, 1)  # (B,S,2L+1)
    one_hot = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
    # The full precision of float32, also where matmuls of an accelerator have less by default.
    of_classes = jnp.einsum(
        "bsl,blk->bsk",
        posterior[..., num_labels + 1 :],
        one_hot,
        precision=jax.lax.Precision.HIGHEST,
    )
    of_classes = of_classes.at[..., blank].add(jnp.sum(posterior[..., : num_labels + 1], axis=2))
    possible = fits(labels, lengths, steps)
    counted = possible[:, None] & (jnp.arange(logits.shape[1]) < steps[:, None])
    gradient = jnp.where(counted[..., None], jnp.exp(log_probs) - of_classes, 0)
    return jnp.where(possible, losses, 0), gradient


def _losses_backward(blank: int, gradient: Array, cotangent: Array) -> tuple[Array, ...]:
    del blank
    return cotangent[:, None, None] * gradient, None, None, None  # type: ignore[return-value]


_losses.defvjp(_losses_forward, _losses_backward)
