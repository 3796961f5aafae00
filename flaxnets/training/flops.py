"""Floating-point operations of a function, counted in its jaxpr without compilation.

XLA's cost analysis counts the body of a loop once; here a scan counts as often as it is long. Of
``jax.lax.platform_dependent`` code the branch of the given platform counts.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

NARROW = 64
"""Side of a matrix, or channels of a convolution, below which the operation counts as narrow."""
ELEMENTWISE = frozenset(
    {
        "abs", "add", "add_any", "and", "atan2", "ceil", "clamp", "div", "eq", "erf_inv", "floor",
        "ge", "gt", "integer_pow", "le", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not",
        "or", "pow", "rem", "round", "select_n", "sign", "square", "sub", "xor",
    }
)  # fmt: skip
TRANSCENDENTAL = frozenset(
    {
        "acos", "asin", "atan", "cbrt", "cos", "erf", "erfc", "exp", "exp2", "expm1", "log",
        "log1p", "logistic", "rsqrt", "sin", "sqrt", "tan", "tanh",
    }
)  # fmt: skip
REDUCTIONS = frozenset(
    {
        "argmax", "argmin", "cummax", "cummin", "cumprod", "cumsum", "cumlogsumexp", "reduce_and",
        "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum",
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating-point operations of one call.

    Attributes:
      products: operations of matmuls and convolutions, a multiply-add being two; taps of a
        convolution that fall on padding do not count.
      narrow: the part of ``products`` with a side or a number of channels below ``NARROW``, which
        no processor computes at its full speed.
      elementwise: one operation per element of a result, or of the input of a reduction.
      transcendental: likewise, for tanh, exp and similar functions.
      unbounded_loops: ``while`` loops of unknown length, each counted as one iteration.
    """

    products: float = 0.0
    narrow: float = 0.0
    elementwise: float = 0.0
    transcendental: float = 0.0
    unbounded_loops: int = 0

    @property
    def total(self) -> float:
        """Products and elementwise operations, as ``flops`` in XLA's cost analysis."""
        return self.products + self.elementwise

    def __add__(self, other: "Flops") -> "Flops":
        """Returns the operations of both calls."""
        return Flops(
            self.products + other.products,
            self.narrow + other.narrow,
            self.elementwise + other.elementwise,
            self.transcendental + other.transcendental,
            self.unbounded_loops + other.unbounded_loops,
        )

    def times(self, calls: int) -> "Flops":
        """Returns the operations of ``calls`` calls."""
        return Flops(
            calls * self.products,
            calls * self.narrow,
            calls * self.elementwise,
            calls * self.transcendental,
            self.unbounded_loops,
        )


def count_flops(function: Callable[..., Any], *arguments: Any, platform: str = "cpu") -> Flops:
    """Returns the operations of ``function(*arguments)``.

    Args:
      function: traceable by JAX.
      arguments: pytrees of arrays or ``jax.ShapeDtypeStruct``.
      platform: ``cpu``, ``cuda``, ``rocm`` or ``tpu``; selects platform-dependent code.

    Raises:
      ValueError: platform-dependent code without a branch for ``platform``.
      RuntimeError: a JAX whose dead-code elimination has another name.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return _count_jaxpr(_remove_dead_code(jaxpr), platform)


def _remove_dead_code(jaxpr: Any) -> Any:
    """Removes equations that no output needs, as XLA does: a gradient still computes the value.

    Raises:
      RuntimeError: a JAX without ``dce_jaxpr``, for which it documents no other name.
    """
    remove = getattr(partial_eval, "dce_jaxpr", None)
    if remove is None:
        raise RuntimeError(
            "count_flops: expected a JAX with jax.interpreters.partial_eval.dce_jaxpr, as 0.10, "
            f"received {jax.__version__}; install a version that constraints.txt names"
        )
    jaxpr, _ = remove(jaxpr, [True] * len(jaxpr.outvars))
    return jaxpr


def _count_jaxpr(jaxpr: Any, platform: str) -> Flops:
    total = Flops()
    chosen: dict[Any, int] = {}  # Branch of the platform, by the variable that holds its index.
    for equation in jaxpr.eqns:
        if equation.primitive.name == "platform_index":
            chosen[equation.outvars[0]] = _branch(equation.params["platforms"], platform)
        elif equation.primitive.name in ("convert_element_type", "clamp"):
            # Conversions between the platform index and its `cond`.
            for source in equation.invars:
                if not isinstance(source, core.Literal) and source in chosen:
                    chosen[equation.outvars[0]] = chosen[source]
        else:
            total += _count_equation(equation, platform, chosen)
    return total


def _branch(platforms: Any, platform: str) -> int:
    """Returns the index of the platform's branch; None stands for all other platforms."""
    for index, names in enumerate(platforms):
        if names is None or platform in names:
            return index
    raise ValueError(f"platform: expected one of {platforms}, received {platform!r}")


def _count_equation(equation: Any, platform: str, chosen: dict[Any, int]) -> Flops:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name == "scan":
        return _count_jaxpr(params["jaxpr"].jaxpr, platform).times(params["length"])
    if name == "while":
        iteration = _count_jaxpr(params["body_jaxpr"].jaxpr, platform)
        iteration += _count_jaxpr(params["cond_jaxpr"].jaxpr, platform)
        return iteration + Flops(unbounded_loops=1)
    if name == "cond":
        return _of_branches(equation, platform, chosen)
    inner = [
        part
        for value in params.values()
        for part in (value if isinstance(value, tuple | list) else (value,))
        if isinstance(part, core.Jaxpr | core.ClosedJaxpr)
    ]
    if name.startswith(("reduce_window", "select_and_")) or name in ("reduce", "sort", "scatter"):
        return Flops(elementwise=float(_size(equation.invars[0])))
    if name.startswith("scatter-"):
        return Flops(elementwise=float(_size(equation.invars[2])))
    if inner:
        # Of a custom_vjp or custom_jvp call the first jaxpr is the function itself.
        jaxpr = inner[0].jaxpr if isinstance(inner[0], core.ClosedJaxpr) else inner[0]
        return _count_jaxpr(jaxpr, platform)
    if name in TRANSCENDENTAL:
        return Flops(transcendental=float(_size(equation.outvars[0])))
    if name in ELEMENTWISE:
        return Flops(elementwise=float(_size(equation.outvars[0])))
    if name in REDUCTIONS:
        return Flops(elementwise=float(_size(equation.invars[0])))
    return Flops()


def _of_branches(equation: Any, platform: str, chosen: dict[Any, int]) -> Flops:
    branches = equation.params["branches"]
    index = equation.invars[0]
    if not isinstance(index, core.Literal) and index in chosen:
        return _count_jaxpr(branches[chosen[index]].jaxpr, platform)
    counted = [_count_jaxpr(branch.jaxpr, platform) for branch in branches]
    return max(counted, key=lambda flops: flops.total)


def _of_product(equation: Any) -> Flops:
    (contracted, _), (mapped, _) = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    depth = math.prod(shape[axis] for axis in contracted)
    matrices = math.prod(shape[axis] for axis in mapped)
    if not matrices * depth:  # As of a layer without inputs: a sum of no terms.
        return Flops()
    rows, columns = (_size(variable) / (matrices * depth) for variable in equation.invars)
    return _products(2.0 * depth * _size(equation.outvars[0]), depth, rows, columns)


def _products(count: float, *sides: float) -> Flops:
    return Flops(products=count, narrow=count if min(sides) < NARROW else 0.0)


def _of_convolution(equation: Any) -> Flops:
    params = equation.params
    numbers = params["dimension_numbers"]
    inputs, kernel = (variable.aval.shape for variable in equation.invars[:2])
    output = equation.outvars[0].aval.shape
    batch, features = output[numbers.out_spec[0]], output[numbers.out_spec[1]]
    pairs = 1.0  # Pairs of an output position and a tap that fall on an input, over all axes.
    for axis in range(len(params["window_strides"])):
        pairs *= _count_pairs(
            inputs[numbers.lhs_spec[2 + axis]],
            kernel[numbers.rhs_spec[2 + axis]],
            output[numbers.out_spec[2 + axis]],
            stride=params["window_strides"][axis],
            before=params["padding"][axis][0],
            input_dilation=params["lhs_dilation"][axis],
            kernel_dilation=params["rhs_dilation"][axis],
        )
    depth = kernel[numbers.rhs_spec[1]]
    # With batch groups (the gradient of a grouped kernel) each output sees a part of the batch.
    return _products(2.0 * pairs * depth * features * batch, depth, features)


def _count_pairs(
    size: int,
    taps: int,
    positions: int,
    *,
    stride: int,
    before: int,
    input_dilation: int,
    kernel_dilation: int,
) -> int:
    """Returns the number of pairs (output position, tap) that fall on an input, along one axis."""
    reached = np.arange(positions)[:, None] * stride + np.arange(taps) * kernel_dilation - before
    inside = (reached >= 0) & (reached <= (size - 1) * input_dilation)
    return int((inside & (reached % input_dilation == 0)).sum())


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)
