"""The shapes of a checkpoint's arrays, and whether they are those of a model."""

import jax

from flaxnets.typing import PyTree


def shapes_of(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Shapes by path, as ``params/classifier/scores/kernel``."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def check_shapes(saved: PyTree, wanted: PyTree, name: str) -> None:
    """Raises ValueError naming the first arrays of ``saved`` that differ in path or shape.

    Args:
      saved: arrays, or what has their shapes.
      wanted: the same of the model.
      name: what the message calls the checkpoint.
    """
    there, now = shapes_of(saved), shapes_of(wanted)
    lines = [
        f"{path}: {there.get(path, 'absent')} there, {now.get(path, 'absent')} now"
        for path in sorted(there.keys() | now.keys())
        if there.get(path) != now.get(path)
    ]
    if lines:
        more = f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
        raise ValueError(
            f"{name}: the checkpoint does not fit the model of this configuration: "
            f"{'; '.join(lines[:3])}{more}"
        )
