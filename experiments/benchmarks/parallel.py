"""Scans parallel in time (DEER, quasi-DEER, ELK) against the sequential scan: time, and operations.

The time on this machine is a group of the benchmarks:

    python -m experiments.benchmarks.run --only=parallel

This file prints three tables: operations by method with the parallel lanes from which Newton's
method wins, counted without a GPU; the iterations of new weights and of weights that were trained
on the adding problem (Hochreiter and Schmidhuber 1997), measured; and those of the trained ones by
ELK and quasi-ELK:

    python -m experiments.benchmarks.parallel

The count bounds the time on P lanes, each of which does one multiply-add (or one elementwise
operation) in a unit of time, by Brent's theorem (1974): work / P + depth, where depth is the
longest chain of operations that wait for each other. It knows neither memory nor the launch of
kernels, which costs a GPU more than the arithmetic of a small step: the table has their number.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.layer_steps import Scanned, make_module_step
from experiments.benchmarks.timing import Case, Step
from flaxnets.recurrent.cells import ElmanCell, GRUCell, LSTMCell
from flaxnets.recurrent.newton_scan import NewtonScan
from flaxnets.recurrent.scan import ScanOptions, collect_reports, scan_cell
from flaxnets.typing import Array, PyTree

SCAN = "our scan"
WAYS = {"DEER": NewtonScan(), "quasi-DEER": NewtonScan("quasi_deer")}
REGULARIZED_WAYS = {
    **WAYS,
    **{f"ELK, {value:g}": NewtonScan("elk", regularization=value) for value in (1e-4, 1e-3)},
    **{
        f"quasi-ELK, {value:g}": NewtonScan("quasi_elk", regularization=value)
        for value in (1e-4, 1e-3)
    },
}
"""Methods of the third table, with their regularization."""
SIZES = ((1_000, 8, 16, 16), (10_000, 8, 16, 16))
"""(T, B, D, F)."""

CELLS = {"Elman": (1, 1), "GRU": (3, 1), "LSTM": (4, 2)}
"""Gates, and vectors of the carry, of each cell."""
CELL_TYPES: Mapping[str, Any] = {"Elman": ElmanCell, "GRU": GRUCell, "LSTM": LSTMCell}
ELEMENTWISE = 4
"""Elementwise operations for each gate and unit, and as many that wait for each other."""
COUNTED = ((1_000, 16), (10_000, 16), (10_000, 64))
"""(T, F) of the table, at a batch of 1."""
ITERATIONS: Mapping[str, Mapping[str, int]] = {
    "Elman": {"DEER": 7, "quasi-DEER": 99},
    "GRU": {"DEER": 5, "quasi-DEER": 17},
    "LSTM": {"DEER": 7, "quasi-DEER": 58},
}
"""Iterations of the table: those measured with new weights at T = 1,000, see ``iteration_rows``."""


@dataclasses.dataclass(frozen=True)
class Count:
    """Operations of one forward pass.

    Attributes:
      work: all multiply-adds and elementwise operations.
      depth: those of the longest chain that waits for itself.
      kernels: dependent kernels.
    """

    work: float
    depth: float
    kernels: float

    def time(self, lanes: float) -> float:
        """Returns Brent's bound in units of one operation: work / P + depth."""
        return self.work / lanes + self.depth


def count_scan(cell: str, num_steps: int, batch_size: int, features: int) -> Count:
    """Returns the operations of the sequential scan, input projections aside.

    >>> count_scan("GRU", num_steps=1000, batch_size=1, features=16).work
    960000
    """
    gates, _ = CELLS[cell]
    step = batch_size * gates * features * (features + ELEMENTWISE)
    depth = math.ceil(math.log2(features)) + 1 + ELEMENTWISE
    return Count(num_steps * step, num_steps * depth, num_steps)


def count_newton(
    method: str, cell: str, num_steps: int, batch_size: int, features: int, iterations: int
) -> Count:
    """Returns the operations of ``iterations`` of DEER or quasi-DEER and of the outputs.

    An associative scan composes 2 T pairs of steps in 2 log T levels (Blelloch 1990): for ``DEER``
    products of n×n matrices, n the width of the carry, for ``quasi-DEER`` of vectors.

    Args:
      method: a name in ``WAYS``.
      cell: a name in ``CELLS``.
      num_steps: T.
      batch_size: B.
      features: F.
      iterations: until the tolerance is met.
    """
    gates, vectors = CELLS[cell]
    width, once = vectors * features, count_scan(cell, 1, batch_size, features)
    levels = 2 * math.ceil(math.log2(num_steps))
    rows = num_steps * batch_size
    if method == "DEER":
        jacobians = rows * width * gates * features * ELEMENTWISE
        compositions = 2 * rows * (width**3 + width**2)
        level = math.ceil(math.log2(width)) + 1
    else:
        jacobians = rows * vectors * gates * features * ELEMENTWISE
        compositions, level = 2 * rows * 2 * width, 2
    work = num_steps * once.work + jacobians + compositions
    # The states' values, their Jacobians, the scan; then the outputs from the states.
    depth = once.depth + ELEMENTWISE + levels * level
    return Count(
        iterations * work + num_steps * once.work,
        iterations * depth + once.depth,
        iterations * (2 + levels) + 1,
    )


def crossing_lanes(newton: Count, scan: Count) -> float:
    """Returns the lanes P from which Newton's method is faster; infinity where it never is.

    >>> scan = count_scan("GRU", 10_000, 1, 16)
    >>> round(crossing_lanes(count_newton("DEER", "GRU", 10_000, 1, 16, 6), scan))
    8579
    """
    gained = scan.depth - newton.depth
    if gained <= 0:
        return math.inf
    return max(1.0, (newton.work - scan.work) / gained)


def memory_floats(method: str, cell: str, num_steps: int, batch_size: int, features: int) -> int:
    """Returns the floats of all Jacobians: B·T·n² for ``DEER``, B·T·n for ``quasi-DEER``."""
    width = CELLS[cell][1] * features
    return batch_size * num_steps * (width**2 if method == "DEER" else width)


def format_counts() -> str:
    """Returns the table of operations and crossing points in Markdown."""
    lines = [
        "| cell, T, F | method | iterations | work, times the scan's | depth, scan's over its | "
        "kernels, scan's over its | lanes from which it wins | Jacobians, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in CELLS:
        for num_steps, features in COUNTED:
            scan = count_scan(cell, num_steps, 1, features)
            for method, iterations in ITERATIONS[cell].items():
                newton = count_newton(method, cell, num_steps, 1, features, iterations)
                floats = memory_floats(method, cell, num_steps, 1, features)
                lines.append(
                    f"| {cell}, {num_steps:,}, {features} | {method} | {iterations} | "
                    f"{newton.work / scan.work:,.0f} | {scan.depth / newton.depth:,.1f} | "
                    f"{scan.kernels / newton.kernels:,.1f} | "
                    f"{crossing_lanes(newton, scan):,.0f} | {4 * floats / 2**20:,.1f} |"
                )
    return "\n".join(lines) + "\n"


def measure_iterations(
    cell: str,
    lengths: Sequence[int],
    *,
    training_steps: int,
    ways: Mapping[str, NewtonScan] = WAYS,
    features: int = 16,
    batch_size: int = 4,
    seed: int = 0,
) -> tuple[float, dict[tuple[int, str], tuple[int, int, float]]]:
    """Returns the iterations of a cell on the adding problem, before or after training on it.

    Args:
      cell: a name in ``CELLS``.
      lengths: T of the sequences that are measured.
      training_steps: Adam steps at T = 50; 0: new weights.
      ways: methods by name.
      features: F.
      batch_size: sequences that are measured.
      seed: of the weights and the data.

    Returns:
      The training's last mean squared error (1/6 without learning), and by length and method the
      largest number of iterations, the number of fallbacks and the largest difference of an output
      from the scan's.
    """
    rng = np.random.default_rng(seed)
    model = _Adding(CELL_TYPES[cell], features)
    inputs, _ = _draw_adding(rng, batch_size, 50)
    variables = jax.jit(model.init)(jax.random.key(seed), inputs)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))

    def loss(variables: PyTree, inputs: Array, targets: Array) -> Array:
        sums: Any = model.apply(variables, inputs)
        return jnp.mean((sums[1] - targets) ** 2)

    @jax.jit
    def train(variables: PyTree, state: Any, inputs: Array, targets: Array) -> Any:
        value, gradients = jax.value_and_grad(loss)(variables, inputs, targets)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(variables, updates), state, value

    state, error = optimizer.init(variables), math.nan
    for _ in range(training_steps):
        variables, state, error = train(variables, state, *_draw_adding(rng, 64, 50))
    found = {}
    for length in lengths:
        inputs, _ = _draw_adding(rng, batch_size, length)
        expected, _ = jax.jit(model.apply)(variables, inputs)
        for name, parallel in ways.items():
            fast = dataclasses.replace(model, options=ScanOptions(parallel=parallel))
            apply = jax.jit(partial(fast.apply, mutable="scan_reports"))
            (outputs, _), sown = apply(variables, inputs)
            (report,) = collect_reports(sown["scan_reports"]).values()
            found[length, name] = (
                int(report.iterations.max()),
                int(report.fallbacks.sum()),
                float(jnp.abs(outputs - expected).max()),
            )
    return float(error), found


class _Adding(nn.Module):
    """A cell and a linear readout of its last output."""

    make_cell: Callable[..., Any]
    features: int
    options: ScanOptions = ScanOptions()

    @nn.compact
    def __call__(self, inputs: Array) -> tuple[Array, Array]:
        cell = self.make_cell(self.features, name="cell")
        outputs = scan_cell(cell, inputs, options=self.options)[1]
        return outputs, nn.Dense(1, name="readout")(outputs[:, -1])[:, 0]


def _draw_adding(
    rng: np.random.Generator, batch_size: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (B,T,2) values in [0,1] and marks of two steps, and (B,) sums of the marked ones."""
    values = rng.random((batch_size, length), np.float32)
    marks = np.zeros_like(values)
    rows, half = np.arange(batch_size), length // 2
    for begin, end in ((0, half), (half, length)):
        marks[rows, rng.integers(begin, end, batch_size)] = 1
    return np.stack([values, marks], -1), (values * marks).sum(1)


def iteration_rows(
    lengths: Sequence[int] = (100, 1_000, 10_000), training_steps: int = 1_000
) -> Iterator[str]:
    """Yields the lines of the table of measured iterations in Markdown, as they are measured."""
    titles = [f"{name}, T={length:,}" for length in lengths for name in WAYS]
    yield f"| cell, F = 16 | weights | {' | '.join(titles)} | largest difference |"
    yield "| --- | --- |" + " --- |" * (len(titles) + 1)
    for cell in CELLS:
        for steps in (0, training_steps):
            error, found = measure_iterations(cell, lengths, training_steps=steps)
            weights = f"trained, error {error:.4f}" if steps else "new"
            counts = [_format_iterations(*counts[:2]) for counts in found.values()]
            largest = max(difference for _, _, difference in found.values())
            yield f"| {cell} | {weights} | {' | '.join(counts)} | {largest:.0e} |"


def regularized_rows(length: int = 1_000, training_steps: int = 1_000) -> Iterator[str]:
    """Yields the lines of the table of ``REGULARIZED_WAYS``, of trained weights, in Markdown."""
    yield f"| cell, trained, T={length:,} | {' | '.join(REGULARIZED_WAYS)} |"
    yield "| --- |" + " --- |" * len(REGULARIZED_WAYS)
    for cell in CELLS:
        _, found = measure_iterations(
            cell, [length], training_steps=training_steps, ways=REGULARIZED_WAYS
        )
        counts = [_format_iterations(*counts[:2]) for counts in found.values()]
        yield f"| {cell} | {' | '.join(counts)} |"


def _format_iterations(iterations: int, fallbacks: int) -> str:
    """Returns the iterations, and how many of the four sequences fell back."""
    return f"{iterations} (fell back: {fallbacks} of 4)" if fallbacks else str(iterations)


def cases(sizes: tuple[tuple[int, int, int, int], ...] = SIZES) -> list[Case]:
    """Returns forward pass and training step of a GRU, each method against the scan, by size."""
    found = []
    for t, b, d, f in sizes:
        x = np.random.default_rng(0).normal(size=(b, t, d)).astype(np.float32)
        for train in (False, True):
            for name, parallel in WAYS.items():
                ways: dict[str, Callable[[], Step]] = {
                    name: partial(_make_step, x, f, parallel, train),
                    SCAN: partial(_make_step, x, f, None, train),
                }
                mode = "training step" if train else "forward"
                title = f"GRU by {name}, T={t}, B={b}, {d}→{f}, {mode}"
                found.append(Case(title, ways, {name: 3}, fresh=False))
    return found


def _make_step(x: np.ndarray, features: int, parallel: NewtonScan | None, train: bool) -> Any:
    options = ScanOptions(parallel=parallel)
    return make_module_step(lambda: Scanned(GRUCell(features), options), x, train)


if __name__ == "__main__":
    print(format_counts(), flush=True)
    for row in itertools.chain(iteration_rows(), [""], regularized_rows()):
        print(row, flush=True)
