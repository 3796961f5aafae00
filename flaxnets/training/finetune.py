"""Fine-tuning to other classes: those that are shared keep their weights, others start anew."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxnets.typing import PyTree

LAYER = ("classifier", "scores")
"""Path of the linear layer of the logits, in networks with a ``StepClassifier``."""


def match_classes(there: Sequence[str], here: Sequence[str]) -> np.ndarray:
    """Returns the index of each class of ``here`` in ``there``, (K,) int32; -1: it is new.

    >>> match_classes(["blank", "a", "b"], ["blank", "b", "c"]).tolist()
    [0, 2, -1]
    """
    numbers = {name: number for number, name in enumerate(there)}
    return np.array([numbers.get(name, -1) for name in here], np.int32)


def remap_classes(
    saved: Mapping[str, Any],
    initial: Mapping[str, Any],
    sources: np.ndarray,
    *,
    layer: Sequence[str] = LAYER,
) -> dict[str, Any]:
    """Returns variables of another run with the classes of this one's.

    The logits of shared classes are as before, for all inputs: each class has its own column of the
    last linear layer's kernel and entry of its bias.

    Args:
      saved: Linen's collections of the other run, with K′ classes.
      initial: those of this run's model, with K classes, which new ones get.
      sources: (K,) integers: class of ``saved``, or -1 for a new one: ``match_classes``.
      layer: path of the linear layer; without it in ``saved`` or ``initial`` nothing is changed.

    Raises:
      ValueError: a layer without K′ or K classes.
    """
    theirs, ours = (_layer(variables["params"], layer) for variables in (saved, initial))
    if theirs is None or ours is None:
        return dict(saved)
    number = int(sources.max(initial=-1)) + 1
    is_shared = sources >= 0

    def remap(old: Any, new: Any) -> np.ndarray:
        old, new = np.asarray(old), np.asarray(new)
        if old.shape[-1] < number or new.shape[-1] != len(sources):
            raise ValueError(
                f"sources: expected an index below {old.shape[-1]} for each of {new.shape[-1]} "
                f"classes of {'/'.join(layer)}, received {len(sources)} up to {number - 1}"
            )
        return np.where(is_shared, old[..., np.maximum(sources, 0)], new).astype(new.dtype)

    remapped: PyTree = jax.tree.map(remap, theirs, ours)
    return {**saved, "params": _with_layer(saved["params"], layer, remapped)}


def _layer(params: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = params
    for name in path:
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found


def _with_layer(params: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    first, *rest = path
    return {**params, first: _with_layer(params[first], rest, value) if rest else value}
