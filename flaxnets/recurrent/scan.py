"""A cell scanned over time, with lengths, directions, rematerialisation and truncation."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError

from flaxnets.layers.batch_sharding import cast_like, in_auto_axes, vary_alike
from flaxnets.layers.padding import check_lengths, check_starts, zero_padding
from flaxnets.recurrent.cell import (
    OUTPUT_GATE,
    PROJECTION,
    Cell,
    ProjectHidden,
    Weights,
    check_carry,
    check_inputs,
)
from flaxnets.recurrent.flax_cells import (
    Flags,
    initialize_flax_carry,
    remat_module,
    scan_flax_steps,
    scan_module,
    step_flax_cell,
)
from flaxnets.recurrent.linear_cells import LinearCell
from flaxnets.recurrent.matmul import ScanWeights
from flaxnets.recurrent.scan_vjp import Step, deferred_scan, plain_scan
from flaxnets.typing import SCAN_REPORTS, Array, Carry, PyTree

AnyCell = Cell | LinearCell | nn.RNNCellBase
GRADIENTS = ("deferred", "autodiff")
AUTO = "auto"
REPORT = "report"
"""Name of a layer's report in it."""


class ParallelScan(Protocol):
    """An algorithm that computes a nonlinear scan in parallel over time, as ``NewtonScan`` does.

    Hashable. Its report is a NamedTuple of (B,) integers, which the layer sows into
    ``SCAN_REPORTS``.
    """

    def initialize_report(self, batch_size: int) -> Any:
        """Returns the report before the first step."""

    def check_carry(self, name: str, carry: Carry) -> None:
        """Refuses the carry of a cell, by name, that the algorithm cannot compute."""

    def scan(
        self,
        step: Step,
        weights: ScanWeights,
        carry: Carry,
        inputs: dict[str, Array],
        flags: Flags,
        report: PyTree,
        *,
        reverse: bool,
        elementwise: bool,
    ) -> tuple[Carry, Any, PyTree]:
        """Returns the last carry, the outputs and the report, else as ``deferred_scan``.

        ``elementwise``: whether a step, but for its hidden projections, is elementwise.
        """


@dataclasses.dataclass(frozen=True)
class ScanOptions:
    """Options of a scan over time; none of them changes the outputs.

    Attributes:
      unroll: steps in one turn of the loop, >= 1; linear cells ignore it.
      remat_steps: steps of a chunk of time whose intermediate values, input projections included,
        are rematerialised in the backward pass; 0: everything is stored. Memory grows with
        ``remat_steps`` and with T / ``remat_steps`` carries; √T is a good choice.
      remat_outer_steps: steps of a chunk of such chunks, whose carries are rematerialised in their
        turn, by a second forward pass; 0: all are stored. It is a multiple of ``remat_steps``.
      truncate_steps: truncated back-propagation through time (Williams and Peng 1990): after every
        ``truncate_steps`` steps of the scan the carry's gradient is stopped; 0: never.
      gradients: ``deferred`` forms the kernels' gradients once, after the scan (for linear cells:
        runs their recurrence backwards), and has no forward-mode derivative; ``autodiff`` leaves
        everything to JAX, convolutions included, and has derivatives in any mode. ``auto`` is
        ``deferred``, or ``autodiff`` for cells of ``flax.linen``, which allow nothing else.
      parallel: computes all steps at once, to a tolerance, for nonlinear cells on vectors, as
        ``newton_scan.NewtonScan()`` does; with ``remat_steps`` or ``truncate_steps`` those of a
        chunk. None: one step after the other.

    Raises:
      ValueError: a value below its minimum, unknown ``gradients``, a ``parallel`` that is no such
        algorithm, ``remat_outer_steps`` that is no multiple of ``remat_steps`` or comes without
        it, or ``truncate_steps`` that is no multiple of both.
    """

    unroll: int = 1
    remat_steps: int = 0
    remat_outer_steps: int = 0
    truncate_steps: int = 0
    gradients: str = AUTO
    parallel: ParallelScan | None = None

    def __post_init__(self) -> None:
        leasts = {"unroll": 1, "remat_steps": 0, "remat_outer_steps": 0, "truncate_steps": 0}
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise ValueError(
                    f"{name}: expected at least {least}, received {getattr(self, name)}"
                )
        if self.gradients not in (AUTO, *GRADIENTS):
            raise ValueError(
                f"gradients: expected one of {(AUTO, *GRADIENTS)}, received {self.gradients!r}"
            )
        if self.parallel is not None and (
            isinstance(self.parallel, type) or not hasattr(self.parallel, "check_carry")
        ):
            raise ValueError(
                "parallel: expected a ParallelScan, as newton_scan.NewtonScan(method='deer'), or "
                f"None, received {self.parallel!r}"
            )
        if self.remat_outer_steps and not self.remat_steps:
            raise ValueError(
                "remat_outer_steps: expected 0 without remat_steps, the steps of an inner chunk, "
                f"received {self.remat_outer_steps}"
            )
        for inner, name in (
            ("remat_steps", "remat_outer_steps"),
            ("remat_steps", "truncate_steps"),
            ("remat_outer_steps", "truncate_steps"),
        ):
            steps = getattr(self, inner)
            if steps and getattr(self, name) % steps:
                raise ValueError(
                    f"{name}: expected a multiple of {inner} = {steps}, received "
                    f"{getattr(self, name)}"
                )

    @property
    def deferred(self) -> bool:
        """True if the kernels of our own cells get their gradients after the scan."""
        return self.gradients != "autodiff"

    @property
    def chunk_steps(self) -> int:
        """Steps that are scanned together; 0: all."""
        return self.remat_steps or self.truncate_steps


def scan_cell(
    cell: AnyCell,
    inputs: Array,
    lengths: Array | None = None,
    *,
    starts: Array | None = None,
    initial_carry: Carry | None = None,
    reverse: bool = False,
    hidden_mask: Array | None = None,
    options: ScanOptions | None = None,
) -> tuple[Carry, Array]:
    """Scans one cell over time, in one direction.

    A padded step, from ``lengths`` on, keeps the carry and outputs zeros, so that a reversed scan
    begins at each sequence's last valid step. Inputs there have no effect on values or gradients,
    not even NaN. Without any step, T = 0, the carry is the initial one.

    >>> import flax.linen as nn, jax, jax.numpy as jnp
    >>> from flaxnets.recurrent import LSTMCell, scan_cell
    >>> x = jnp.ones((2, 5, 3))
    >>> lengths = jnp.array([5, 2])
    >>> run = jax.jit(nn.init_with_output(scan_cell, LSTMCell(4)))
    >>> ((cell_state, hidden), outputs), variables = run(jax.random.key(0), x, lengths)
    >>> hidden.shape, outputs.shape
    ((2, 4), (2, 5, 4))
    >>> bool((outputs[1, 1] == hidden[1]).all()), float(jnp.abs(outputs[1, 2:]).max())
    (True, 0.0)

    Args:
      cell: a bound cell, or one that is called in a compact method: any of ours, of
        ``flax.linen``, or one of one's own (see ``cell.py``).
      inputs: (B,T,D), or (B,T,H,W,C) for cells on feature maps, float.
      lengths: (B,) integers in [0,T], valid steps, an array or a list; None: all.
      starts: (B,T) bool, the first steps of sequences that are packed one after another into a row,
        as of episodes: the carry is reset before them, in either direction, so that values and
        gradients are those of the single sequences. None: one sequence a row.
      initial_carry: the carry before the first step; None: zeros.
      reverse: from the last step to the first.
      hidden_mask: (B,F) or (B,1,1,F), multiplies the hidden states that the hidden projections
        read, the same at every step (variational dropout, Gal and Ghahramani, 1512.05287). Not for
        linear cells, which have no such projections, nor for cells of ``flax.linen``, whose
        projections are out of reach.
      options: of the scan; None: the defaults.

    Returns:
      The carry after each sequence's last step (in the direction of the scan), and the outputs
      (B,T,...,F) in the cell's dtype, zero at padded steps.

    Raises:
      ValueError: inputs of another rank or of integers, lengths of another shape or outside [0,T],
        starts that are not (B,T) bool, an initial carry that is not the cell's, and what
        ``check_cell``, ``check_options`` and ``check_hidden_dropout`` refuse.
    """
    options = options or ScanOptions()
    check_cell("cell", cell)
    check_options(cell, options)
    if hidden_mask is not None:
        check_hidden_dropout("hidden_mask", cell, None, f"shape {hidden_mask.shape}")
    check_inputs(inputs, "B,T", cell.num_feature_axes)
    batch_size, num_steps = inputs.shape[:2]
    if lengths is not None:
        lengths = check_lengths(lengths, batch_size, num_steps)
    if starts is not None:
        starts = check_starts(starts, batch_size, num_steps)
    step_shape = (batch_size, *inputs.shape[2:])
    if not num_steps:
        # A loop needs a step: one of padding, which keeps the carry and whose output is cut off.
        inputs = jnp.zeros((batch_size, 1, *inputs.shape[2:]), inputs.dtype)
        lengths, starts = jnp.zeros(batch_size, jnp.int32), None
    parallel = options.parallel
    weights: Any
    scan_steps: Any
    lifted: dict[str, Any] = {}
    if isinstance(cell, nn.RNNCellBase):
        # Only the module itself can use its parameters, so it goes through Linen's lifted scans.
        weights, zeros = cell, initialize_flax_carry(cell, step_shape)
        scan_steps = partial(scan_flax_steps, reverse=reverse, unroll=options.unroll)
        lifted = {"scan": scan_module, "checkpoint": remat_module}
        # The parameters are made by the lifted scan.
        parallel = None if cell.is_initializing() else parallel
        if parallel is not None:
            module, variables = cell.unbind()
            weights, lifted = variables.get("params", {}), {}
            scan_steps = partial(_scan_flax_in_parallel, module, reverse, parallel)
    else:
        weights = cell.weights(inputs.shape), hidden_mask
        zeros = cell.initialize_carry(None, step_shape)
        if isinstance(cell, LinearCell):
            scan_steps = partial(_scan_linear, cell, reverse, options)
        else:
            scan_steps = partial(_scan_steps, cell, reverse, options)
    if initial_carry is None:
        initial_carry = zeros
    check_carry(initial_carry, zeros)
    if parallel is not None:
        parallel.check_carry(_cell_name(cell), zeros)
        initial_carry = initial_carry, parallel.initialize_report(batch_size)

    def scan_batch(
        weights: Any,
        carry: Carry,
        inputs: Array,
        lengths: Array | None,
        starts: Array | None,
    ) -> tuple[Carry, Array]:
        valid = resets = None
        if lengths is not None:
            valid = jnp.arange(inputs.shape[1])[:, None] < lengths  # (T,B)
        if starts is not None:
            resets = starts.T if valid is None else starts.T & valid
            if reverse:  # The scan enters a sequence at its last step.
                resets = jnp.pad(resets[1:], ((0, 1), (0, 0)))
        xs = zero_padding(inputs, lengths).swapaxes(0, 1), Flags(valid, resets)
        carry, outputs = scan_chunks(
            scan_steps, weights, carry, xs, reverse=reverse, options=options, **lifted
        )
        outputs = outputs.swapaxes(0, 1)
        return carry, outputs if num_steps else outputs[:, :0]

    if isinstance(cell, nn.RNNCellBase) and parallel is None:
        return scan_batch(cell, cast_like(initial_carry, inputs), inputs, lengths, starts)
    arguments = vary_alike((weights, initial_carry, inputs, lengths, starts))
    carry, outputs = in_auto_axes(scan_batch, inputs)(*arguments)
    if parallel is not None:
        carry, report = carry
        sower: Any = cell
        if not getattr(sower, "is_initializing", bool)():  # No variables to keep.
            sower.sow(SCAN_REPORTS, REPORT, report)
    return carry, outputs


def collect_reports(reports: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the reports of all scans by the path of their cell, as ``recurrent/forward_0``.

    Args:
      reports: the collection ``scan_reports``, from ``apply(..., mutable=["scan_reports"])``.
    """
    found: dict[str, Any] = {}
    for name, part in reports.items():
        if isinstance(part, Mapping):
            for path, report in collect_reports(part).items():
                found[f"{name}/{path}".rstrip("/")] = report
        else:
            # A cell that is scanned several times reports them one after the other.
            found[""] = jax.tree.map(lambda *counts: sum(counts), *part)
    return found


def check_options(cell: AnyCell, options: ScanOptions) -> None:
    """Refuses options of the scan that the cell cannot have.

    Raises:
      ValueError: deferred gradients for a cell of ``flax.linen``; a parallel scan for a cell on
        feature maps, for a linear one, or with derivatives in any mode.
    """
    if options.parallel is not None:
        _check_parallel(cell, options)
    if isinstance(cell, nn.RNNCellBase) and options.gradients == "deferred":
        raise ValueError(
            f"gradients: expected 'autodiff' or 'auto' for {_cell_name(cell)}, whose matmuls are "
            "out of reach of a custom gradient, received 'deferred'; the cells of "
            "flaxnets.recurrent have one"
        )


def _check_parallel(cell: AnyCell, options: ScanOptions) -> None:
    if isinstance(cell, LinearCell):
        raise ValueError(
            f"parallel: expected None for {_cell_name(cell)}, whose recurrence is linear and "
            f"parallel over time already, received {options.parallel}"
        )
    if cell.num_feature_axes != 1:
        raise ValueError(
            f"parallel: expected None for {_cell_name(cell)}, whose carry is feature maps: the "
            "Jacobian of one step has as many entries as a carry of all maps squared, received "
            f"{options.parallel}"
        )
    if options.gradients == "autodiff":
        raise ValueError(
            "gradients: expected 'auto' or 'deferred' where parallel is given, whose gradients are "
            "those of the implicit function theorem, received 'autodiff'"
        )


def check_hidden_dropout(name: str, cell: AnyCell, expected: Any, received: Any) -> None:
    """Refuses dropout of hidden states for a cell whose hidden projections cannot be reached.

    Args:
      name: the argument that the error names.
      cell: any.
      expected: the value without dropout.
      received: the value that was given, in the words of the error.

    Raises:
      ValueError: a linear cell, or one of ``flax.linen``.
    """
    if isinstance(cell, LinearCell):
        raise ValueError(
            f"{name}: expected {expected} for {type(cell).__name__}, which has no hidden "
            f"projections, received {received}"
        )
    if isinstance(cell, nn.RNNCellBase):
        raise ValueError(
            f"{name}: expected {expected} for {_cell_name(cell)}, whose hidden "
            f"projections are out of reach, received {received}; LSTMCell, GRUCell, ElmanCell, "
            "ConvLSTMCell, ConvGRUCell and STLSTMCell of flaxnets.recurrent have it"
        )


def _cell_name(cell: Any) -> str:
    """Its name with that of its package, since Flax's cells are called as ours are."""
    package = "flax.linen." if type(cell).__module__.startswith("flax.linen") else ""
    return package + type(cell).__name__


# Inside a scan nothing is common to the forward and the backward pass.
_checkpoint = partial(jax.checkpoint, prevent_cse=False)


def _scan_arrays(
    body: Callable[..., tuple[Carry, Array]],
    weights: PyTree,
    carry: Carry,
    xs: PyTree,
    *,
    reverse: bool,
) -> tuple[Carry, Array]:
    return jax.lax.scan(partial(body, weights), carry, xs, reverse=reverse)


def scan_chunks(
    scan_steps: Any,
    weights: PyTree,
    carry: Carry,
    xs: PyTree,
    *,
    reverse: bool,
    options: ScanOptions,
    scan: Callable[..., tuple[Carry, PyTree]] = _scan_arrays,
    checkpoint: Callable[[Any], Any] = _checkpoint,
) -> tuple[Carry, PyTree]:
    """Scans all steps, in chunks of time if ``options`` rematerialise or truncate.

    Args:
      scan_steps: (weights, carry, xs) to the new carry and a pytree of outputs (T,...), for any T.
      weights: a pytree, or the bound module that holds the parameters.
      carry: before the first step.
      xs: a pytree of arrays (T,...).
      reverse: from the last step to the first.
      options: ``remat_steps``, ``remat_outer_steps`` and ``truncate_steps``.
      scan: (body, weights, carry, xs) to the last carry and outputs; ``scan_module`` for modules.
      checkpoint: ``jax.checkpoint``; ``remat_module`` for modules.
    """
    if options.remat_outer_steps:
        # Gradients are cut off between the outer chunks alone.
        inner = dataclasses.replace(options, remat_outer_steps=0, truncate_steps=0)
        how: dict[str, Any] = {"reverse": reverse, "scan": scan, "checkpoint": checkpoint}
        scan_steps = partial(scan_chunks, scan_steps, options=inner, **how)
        outer = dataclasses.replace(
            options, remat_steps=options.remat_outer_steps, remat_outer_steps=0
        )
        return scan_chunks(scan_steps, weights, carry, xs, options=outer, **how)
    size, num_steps = options.chunk_steps, jax.tree.leaves(xs)[0].shape[0]
    if not 0 < size < num_steps:
        return scan_steps(weights, carry, xs)
    if options.remat_steps:
        scan_steps = checkpoint(scan_steps)
    count, rest = divmod(num_steps, size)
    # The last chunk in the direction of the scan is the short one, so that chunks, and with them
    # truncation, are counted from the step where the scan begins.
    first = rest if reverse else 0

    def body(weights: PyTree, carry: Carry, inputs: Any) -> tuple[Carry, PyTree]:
        number, chunk = inputs
        if options.truncate_steps:
            cut = (number > 0) & (number * size % options.truncate_steps == 0)
            carry = jax.tree.map(lambda c: jnp.where(cut, jax.lax.stop_gradient(c), c), carry)
        return scan_steps(weights, carry, chunk)

    # A chunk's number counts in the direction of the scan.
    numbers = jnp.arange(count)[::-1] if reverse else jnp.arange(count)
    chunks = jax.tree.map(
        lambda x: x[first : first + count * size].reshape(count, size, *x.shape[1:]), xs
    )
    carry, outputs = scan(body, weights, carry, (numbers, chunks), reverse=reverse)
    outputs = jax.tree.map(lambda x: x.reshape(count * size, *x.shape[2:]), outputs)
    if not rest:
        return carry, outputs
    begin = 0 if reverse else count * size
    last = jax.tree.map(lambda x: x[begin : begin + rest], xs)
    if options.truncate_steps and count * size % options.truncate_steps == 0:
        carry = jax.lax.stop_gradient(carry)
    carry, rest_outputs = scan_steps(weights, carry, last)
    both = (rest_outputs, outputs) if reverse else (outputs, rest_outputs)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *both)


def _scan_steps(
    cell: Cell,
    reverse: bool,
    options: ScanOptions,
    weights: tuple[Weights, Array | None],
    carry: Carry,
    xs: tuple[Array, Flags],
) -> tuple[Carry, Array]:
    """Scans one of our cells over the (T,B,...) inputs of one chunk."""
    parameters, hidden_mask = weights
    inputs, flags = xs
    step_shape = inputs.shape[1:]
    project = cell.project
    if not options.deferred:  # A cell of one's own may have the members of ``Cell`` alone.
        project = getattr(cell, "project_with_autodiff", project)
    projected = project(parameters.input, inputs)

    def step(
        project_hidden: ProjectHidden,
        others: PyTree,
        flags: Flags,
        carry: Carry,
        x: dict[str, Array],
    ) -> tuple[Carry, Array]:
        pointwise, hidden_mask = others
        valid, resets = flags
        entering = carry
        if resets is not None:
            # Made here, since a custom gradient must not see arrays from outside.
            zeros = cell.initialize_carry(None, step_shape)
            entering = jax.tree.map(partial(_where, resets), zeros, carry)

        def project_masked(name: str, hidden: Array) -> Array:
            # Projections to the output read the new states, not the carry.
            if hidden_mask is not None and name not in (PROJECTION, OUTPUT_GATE):
                hidden = hidden * hidden_mask.astype(hidden.dtype)
            return project_hidden(name, hidden)

        new_carry, output = cell.step(pointwise, project_masked, entering, x)
        if valid is None:
            return new_carry, output
        keep = partial(_where, valid)
        carry = jax.tree.map(keep, new_carry, carry)
        return carry, keep(output, jnp.zeros((), output.dtype))

    scan = deferred_scan if options.deferred else plain_scan
    scanned = ScanWeights(parameters.hidden, parameters.bias, (parameters.pointwise, hidden_mask))
    if options.parallel is not None:
        carry, report = carry
        elementwise = getattr(cell, "elementwise", False)
        carry, outputs, report = options.parallel.scan(
            step, scanned, carry, projected, flags, report, reverse=reverse, elementwise=elementwise
        )
        return (carry, report), outputs
    return scan(step, scanned, carry, projected, flags, reverse=reverse, unroll=options.unroll)


def _scan_flax_in_parallel(
    module: nn.RNNCellBase,
    reverse: bool,
    parallel: ParallelScan,
    parameters: PyTree,
    carry: tuple[Carry, PyTree],
    xs: tuple[Array, Flags],
) -> tuple[Carry, Array]:
    """Runs an unbound cell of Flax over the (T,B,...) inputs of one chunk, all steps at once."""
    inputs, flags = xs

    def step(
        _: ProjectHidden, parameters: PyTree, flags: Flags, carry: Carry, x: dict[str, Array]
    ) -> tuple[Carry, Array]:
        bound = module.bind({"params": parameters})
        try:
            return step_flax_cell(bound, carry, (x["inputs"], flags))
        except InvalidRngError as error:
            raise ValueError(
                f"parallel: expected None for {_cell_name(module)}, which draws random numbers at "
                f"every step, received {parallel}; the layer's dropout_rate draws its own"
            ) from error

    weights = ScanWeights({}, {}, parameters)
    carry, report = carry
    carry, outputs, report = parallel.scan(
        step, weights, carry, {"inputs": inputs}, flags, report, reverse=reverse, elementwise=False
    )
    return (carry, report), outputs


def _scan_linear(
    cell: LinearCell,
    reverse: bool,
    options: ScanOptions,
    weights: tuple[dict[str, Array], None],
    carry: Carry,
    xs: tuple[Array, Flags],
) -> tuple[Carry, Array]:
    """Runs a linear cell over the (T,B,...) inputs of one chunk, all steps at once."""
    parameters, _ = weights
    # Batch first, as the layer's inputs are, for the matmuls and the recurrence over all steps.
    inputs, (valid, resets) = jax.tree.map(lambda x: x.swapaxes(0, 1), xs)
    autodiff = not options.deferred
    carry, outputs = cell.run(
        parameters, carry, inputs, valid, resets, reverse=reverse, autodiff=autodiff
    )
    return carry, outputs.swapaxes(0, 1)


def _where(valid: Array, new: Array, old: Array) -> Array:
    return jnp.where(valid.reshape(-1, *[1] * (new.ndim - 1)), new, old)


_MEMBERS = (
    "features",
    "dtype",
    "num_feature_axes",
    "weights",
    "initialize_carry",
    "project",
    "step",
)


def check_cell(name: str, cell: Any) -> None:
    """Refuses a class that no layer can scan.

    Args:
      name: the argument that the error names.
      cell: a cell, or the class of one.

    Raises:
      ValueError: neither a ``flax.linen.RNNCellBase`` nor a ``LinearCell``, and without some of the
        members of ``Cell``.
    """
    kind = cell if isinstance(cell, type) else type(cell)
    if issubclass(kind, (nn.RNNCellBase, LinearCell)):
        return
    members = set(dir(kind)) | set(getattr(kind, "__dataclass_fields__", ()))
    missing = [member for member in _MEMBERS if member not in members]
    if missing:
        raise ValueError(
            f"{name}: expected a recurrent cell: a subclass of flax.linen.RNNCellBase, or a class "
            f"with the members of flaxnets.recurrent.cell.Cell, received {kind.__name__}, which "
            f"has no {', '.join(missing)}"
        )
