"""Floating-point operations of a function, counted in its jaxpr: nothing is compiled or allocated.

XLA's own analysis counts the body of a loop once, however often it runs; here a scan counts as
often as it is long. Of platform-dependent code the branch of the platform that is asked for counts.
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
"""Rows, columns, depth or channels below which a product counts as narrow."""
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
    """Operations of one call.

    Attributes:
      products: of matrix products and convolutions, a multiplication and an addition being two;
        what a convolution would multiply with padding does not count.
      narrow: those of ``products`` in which a side of a matrix, or the channels of a convolution
        are fewer than ``NARROW``: no processor does them at its full speed.
      elementwise: one for each element of a result, or of what is reduced.
      transcendental: the same, of tanh, exp and their like.
      unbounded_loops: loops without a known number of turns, of which one turn was counted.
    """

    products: float = 0.0
    narrow: float = 0.0
    elementwise: float = 0.0
    transcendental: float = 0.0
    unbounded_loops: int = 0

    @property
    def total(self) -> float:
        """Products and elementwise operations, as XLA's ``flops``."""
        return self.products + self.elementwise

    def __add__(self, other: "Flops") -> "Flops":
        """Of one call after the other."""
        return Flops(
            self.products + other.products,
            self.narrow + other.narrow,
            self.elementwise + other.elementwise,
            self.transcendental + other.transcendental,
            self.unbounded_loops + other.unbounded_loops,
        )

    def times(self, turns: int) -> "Flops":
        """Of ``turns`` calls."""
        return Flops(
            turns * self.products,
            turns * self.narrow,
            turns * self.elementwise,
            turns * self.transcendental,
            self.unbounded_loops,
        )


def count_flops(function: Callable[..., Any], *arguments: Any, platform: str = "cpu") -> Flops:
    """The operations of ``function(*arguments)``.

    Args:
      function: traceable by JAX.
      arguments: pytrees of arrays or ``jax.ShapeDtypeStruct``.
      platform: ``cpu``, ``cuda``, ``rocm`` or ``tpu``: whose code counts.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    # As XLA does; a gradient leaves behind what only the function's value needs. JAX has no
    # documented name for it: test_flops.py holds this one on each JAX that is allowed.
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count_jaxpr(jaxpr, platform)


def _count_jaxpr(jaxpr: Any, platform: str) -> Flops:
    total = Flops()
    chosen: dict[Any, int] = {}  # which branch a platform takes
    for equation in jaxpr.eqns:
        if equation.primitive.name == "platform_index":
            chosen[equation.outvars[0]] = _branch(equation.params["platforms"], platform)
        elif equation.primitive.name in ("convert_element_type", "clamp"):
            # What an index goes through before it reaches its branches.
            for source in equation.invars:
                if not isinstance(source, core.Literal) and source in chosen:
                    chosen[equation.outvars[0]] = chosen[source]
        else:
            total += _count_equation(equation, platform, chosen)
    return total


def _branch(platforms: Any, platform: str) -> int:
    """The place of the platform; None among them is every other one."""
    for place, names in enumerate(platforms):
        if names is None or platform in names:
            return place
    raise ValueError(f"platform: no code for {platform!r} among {platforms}")


def _count_equation(equation: Any, platform: str, chosen: dict[Any, int]) -> Flops:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name == "scan":
        return _count_jaxpr(params["jaxpr"].jaxpr, platform).times(params["length"])
    if name == "while":
        turn = _count_jaxpr(params["body_jaxpr"].jaxpr, platform)
        turn += _count_jaxpr(params["cond_jaxpr"].jaxpr, platform)
        return turn + Flops(unbounded_loops=1)
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
        # Of a function with its derivative the first jaxpr is the function.
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
    pairs = 1.0  # of places and taps that meet an input
    for axis in range(len(params["window_strides"])):
        pairs *= _meetings(
            inputs[numbers.lhs_spec[2 + axis]],
            kernel[numbers.rhs_spec[2 + axis]],
            output[numbers.out_spec[2 + axis]],
            stride=params["window_strides"][axis],
            before=params["padding"][axis][0],
            input_dilation=params["lhs_dilation"][axis],
            kernel_dilation=params["rhs_dilation"][axis],
        )
    depth = kernel[numbers.rhs_spec[1]]
    # With groups of the batch, as in the gradient of a grouped kernel, each sees its part.
    return _products(2.0 * pairs * depth * features * batch, depth, features)


def _meetings(
    size: int,
    taps: int,
    places: int,
    *,
    stride: int,
    before: int,
    input_dilation: int,
    kernel_dilation: int,
) -> int:
    """Pairs of a place and a tap that fall on an input, along one axis."""
    reached = np.arange(places)[:, None] * stride + np.arange(taps) * kernel_dilation - before
    inside = (reached >= 0) & (reached <= (size - 1) * input_dilation)
    return int((inside & (reached % input_dilation == 0)).sum())


def _size(variable: Any) -> int:
    return math.prod(variable.aval.shape)
