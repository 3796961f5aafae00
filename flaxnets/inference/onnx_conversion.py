"""Conversion of a model's functions to ONNX by jax2onnx, each checked with onnxruntime.

The converter does not know all operations of JAX. ``rewrite`` writes those that our functions use
by others, of the same values: code for several platforms by its default branch, a scan from the
last step by one over reversed arrays, padding of open batches and between elements by
concatenation, max pooling by the maximum of strided slices, remainders of integers by division. The
batch size is free where the converter allows it; the number of steps is not, since the converter
cannot leave the length of an axis of time open.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from flaxnets.typing import Array

TOLERANCE = 1e-4
"""Largest difference between onnxruntime and JAX, in units of an output's largest absolute value or
1, whichever is larger; more is an error."""
BATCH_SIZES = (1, 3)
"""Batch sizes of the check."""


class ConversionRefused(ValueError):
    """Function that the converter, or onnxruntime, does not take."""


@dataclasses.dataclass(frozen=True)
class OnnxFunction:
    """Function in ONNX.

    Attributes:
      content: the file; parameters are part of it.
      inputs: names, in the order of the arguments.
      outputs: names, in the order of the results.
      difference: largest one from JAX, see ``TOLERANCE``.
    """

    content: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    difference: float


def check_installed() -> None:
    """Checks that converter and runtime are installed.

    Raises:
      ModuleNotFoundError: one of them is not.
    """
    for name in ("jax2onnx", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"launch.export --onnx needs {name}, which is not installed: "
                "pip install -c constraints.txt -e '.[onnx]'"
            )


def convert(
    name: str,
    function: Callable[..., Any],
    shapes: Sequence[Any],
    examples: Sequence[Sequence[Any]],
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> OnnxFunction:
    """Converts a function, and compares both on examples.

    Args:
      name: of the function, for messages.
      function: of arrays and lists of arrays; its results, of whatever structure, are flattened.
      shapes: ``jax.ShapeDtypeStruct`` of its arguments, whose first axes may be a symbol.
      examples: arguments, for one or more batch sizes.
      input_names: of the flat arguments.
      output_names: of the flat results.

    Raises:
      ConversionRefused: an operation that the converter or onnxruntime does not take.
      ValueError: the results differ by more than ``TOLERANCE``.
      ModuleNotFoundError: an extra that is not installed.
    """
    check_installed()
    flat_shapes, structure = jax.tree.flatten(tuple(shapes))

    def flat(*leaves: Array) -> list[Array]:
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))

    converted = rewrite(flat, *flat_shapes)
    try:
        with _silence():
            import onnxruntime
            from jax2onnx import to_onnx

            model: Any = to_onnx(
                converted,
                flat_shapes,
                model_name=name,
                input_names=list(input_names),
            )
            _name_outputs(model.graph, output_names)
            content = model.SerializeToString()
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4  # It raises its errors, too.
            session = onnxruntime.InferenceSession(content, options)
    except Exception as error:  # Each plug-in of the converter raises its own.
        raise ConversionRefused(_one_sentence(error)) from error
    run_jax = jax.jit(flat)
    difference = 0.0
    for example in examples:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tuple(example))]
        fed = dict(zip(input_names, leaves, strict=True))
        taken = {value.name: fed[value.name] for value in session.get_inputs()}
        expected = run_jax(*leaves)
        try:
            received = session.run(list(output_names), taken)
        except Exception as error:  # onnxruntime has no class of its own for all of its errors.
            raise ConversionRefused(_one_sentence(error)) from error
        for one, other in zip(received, expected, strict=True):
            difference = max(difference, _difference(one, np.asarray(other)))
    if not difference <= TOLERANCE:
        raise ValueError(
            f"{name}.onnx: expected results within {TOLERANCE:.0e} of JAX's, received a difference "
            f"of {difference:.1e}; the file is not kept, use the functions without --onnx"
        )
    taken_names = tuple(value.name for value in session.get_inputs())
    return OnnxFunction(content, taken_names, tuple(output_names), difference)


def _name_outputs(graph: Any, names: Sequence[str]) -> None:
    """Gives each output a name of its own; two of them may be the same value."""
    import onnx

    for value, name in zip(graph.output, names, strict=True):
        graph.node.append(onnx.helper.make_node("Identity", [value.name], [name]))
        value.name = name


def _difference(received: np.ndarray, expected: np.ndarray) -> float:
    if received.shape != expected.shape:
        return float("inf")
    own, wide = received.astype(np.float64), expected.astype(np.float64)
    differ = own != wide  # Equal infinities, as of a maximum's carry, differ by nothing.
    if not differ.any():
        return 0.0
    largest = np.abs(own[differ] - wide[differ]).max()
    scale = np.abs(wide[np.isfinite(wide)]).max(initial=1.0)
    return float(largest / scale) if np.isfinite(largest) else float("inf")


def _one_sentence(error: Exception) -> str:
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    first = re.sub(r"^/\S+ .*\) ", "", first.split("Status Message: ")[-1])  # Its source file.
    return f"{type(error).__name__}: {first.rstrip('.')}"[:300]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Hides log lines and warnings of the converter, which tells of plug-ins it does without."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ---- Operations that the converter does not know ---------------------------------------------


def rewrite(
    function: Callable[..., Sequence[Array]], *shapes: jax.ShapeDtypeStruct
) -> Callable[..., list[Array]]:
    """Returns a function of the same values without what the converter does not take.

    Custom derivatives and the boundaries of jitted functions are gone, too.

    >>> def last_first(x):
    ...     return [jax.lax.scan(lambda c, y: (c + y, c), 0.0, x, reverse=True)[1]]
    >>> shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    >>> written = rewrite(last_first, shape)
    >>> written(jnp.array([1.0, 2.0, 3.0]))[0].tolist()
    [5.0, 3.0, 0.0]
    >>> "reverse=True" in str(jax.make_jaxpr(written)(shape))
    False

    Args:
      function: of arrays; returns a list of arrays.
      *shapes: of its arguments; sizes may be symbols.
    """
    traced = jax.make_jaxpr(function)(*shapes)
    # Traced here: while it converts, jax2onnx replaces functions of jax.numpy by its own.
    written = jax.make_jaxpr(lambda *arguments: _evaluate(traced, *arguments))(*shapes)
    return core.jaxpr_as_fun(written)


_CALLS = {
    "pjit": "jaxpr",
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
"""Operations that call a function, with the parameter that holds it."""


class _Branch(int):
    """Index of a platform's code, known while tracing."""


def _evaluate(closed: Any, *arguments: Any) -> list[Any]:
    jaxpr = closed.jaxpr
    values = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        results = _apply(equation, [read(variable) for variable in equation.invars])
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _apply(equation: Any, inputs: list[Any]) -> list[Any]:
    """Returns the results of one operation."""
    name, params = equation.primitive.name, equation.params
    if name == "platform_index":
        return [_Branch(params["platforms"].index(None))]
    if inputs and isinstance(inputs[0], _Branch):
        if name == "cond":
            return _evaluate(params["branches"][inputs[0]], *inputs[1:])
        return [inputs[0]]  # A conversion of its dtype.
    if any(isinstance(value, _Branch) for value in inputs):
        return [next(value for value in inputs if isinstance(value, _Branch))]  # A clamp.
    if name in _CALLS:
        called = params[_CALLS[name]]
        if not isinstance(called, core.ClosedJaxpr):
            called = core.ClosedJaxpr(called, ())
        return _evaluate(called, *inputs)
    if name == "scan":
        return _scan(params, inputs)
    if name == "while":
        return _while(params, inputs)
    if name == "cond":
        branches = [_as_function(branch) for branch in params["branches"]]
        return list(jax.lax.switch(inputs[0], branches, *inputs[1:]))
    if name == "reduce_window_max":
        return [_max_pool(inputs[0], params)]
    if name == "rem" and jnp.issubdtype(inputs[0].dtype, jnp.integer):
        return [inputs[0] - jax.lax.div(*inputs) * inputs[1]]
    if name == "pad" and (
        any(interior for _, _, interior in params["padding_config"])
        or not all(isinstance(size, int) for size in inputs[0].shape)
    ):
        return [_pad(inputs[0], inputs[1], params["padding_config"])]
    results = equation.primitive.bind(*inputs, **params)
    return list(results) if equation.primitive.multiple_results else [results]


def _as_function(closed: Any) -> Callable[..., list[Any]]:
    return lambda *arguments: _evaluate(closed, *arguments)


def _scan(params: Any, inputs: list[Any]) -> list[Any]:
    if "ft_in" in params:  # From JAX 0.12 on: trees of the constants, carry and inputs.
        first, carried = (len(group) for group in params["ft_in"].unpack()[:2])
    else:
        first, carried = params["num_consts"], params["num_carry"]
    constants, initial = inputs[:first], inputs[first : first + carried]

    def step(carry: list[Any], x: list[Any]) -> tuple[list[Any], list[Any]]:
        results = _evaluate(params["jaxpr"], *constants, *carry, *x)
        return results[:carried], results[carried:]

    def turn(arrays: list[Any]) -> list[Any]:
        return [jax.lax.rev(x, (0,)) for x in arrays] if params["reverse"] else arrays

    inputs_of_steps = turn(inputs[first + carried :])
    carry, outputs = jax.lax.scan(step, initial, inputs_of_steps, length=params["length"])
    return [*carry, *turn(outputs)]


def _while(params: Any, inputs: list[Any]) -> list[Any]:
    first, second = params["cond_nconsts"], params["body_nconsts"]
    of_condition, of_body = inputs[:first], inputs[first : first + second]

    def goes_on(carry: Any) -> Any:
        return _evaluate(params["cond_jaxpr"], *of_condition, *carry)[0]

    def step(carry: Any) -> Any:
        return _evaluate(params["body_jaxpr"], *of_body, *carry)

    return list(jax.lax.while_loop(goes_on, step, inputs[first + second :]))


def _pad(x: Any, value: Any, config: Sequence[tuple[int, int, int]]) -> Any:
    """Pads as ``jax.lax.pad``, by concatenation between the elements and in open batches."""
    for axis, (_, _, interior) in enumerate(config):
        size = x.shape[axis]
        if not interior or size == 0:
            continue
        between = jnp.broadcast_to(value, (*x.shape[: axis + 1], interior, *x.shape[axis + 1 :]))
        spread = jnp.concatenate([jnp.expand_dims(x, axis + 1), between], axis + 1)
        spread = spread.reshape(*x.shape[:axis], size * (1 + interior), *x.shape[axis + 1 :])
        x = jax.lax.slice_in_dim(spread, 0, (size - 1) * (1 + interior) + 1, axis=axis)
    sides = [(int(low), int(high)) for low, high, _ in config]
    if all(isinstance(size, int) for size in x.shape) or min(map(min, sides)) < 0:
        return jax.lax.pad(x, value, [(low, high, 0) for low, high in sides])
    for axis, (low, high) in enumerate(sides):
        before, after = (
            [jnp.broadcast_to(value, (*x.shape[:axis], count, *x.shape[axis + 1 :]))] * bool(count)
            for count in (low, high)
        )
        if before or after:
            x = jnp.concatenate([*before, x, *after], axis)
    return x


def _max_pool(x: Any, params: Any) -> Any:
    """Pools as ``jax.lax.reduce_window_max``: onnxruntime pools over three axes at most."""
    low = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    window, strides = params["window_dimensions"], params["window_strides"]
    if any(pair != (0, 0) for pair in params["padding"]):
        x = _pad(x, jnp.asarray(low, x.dtype), [(*pair, 0) for pair in params["padding"]])
    for axis, (size, stride) in enumerate(zip(window, strides, strict=True)):
        if size == stride == 1:
            continue
        spread = params["window_dilation"][axis]
        count = (x.shape[axis] - (size - 1) * spread - 1) // stride + 1
        parts = [
            jax.lax.slice_in_dim(x, first, first + (count - 1) * stride + 1, stride, axis)
            for first in range(0, size * spread, spread)
        ]
        x = functools.reduce(jnp.maximum, parts)
    return x
