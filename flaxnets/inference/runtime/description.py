"""Checks of a model's ``model.json``, which may have come from elsewhere."""

from collections.abc import Mapping
from typing import Any

from .models import CLASSIFICATION, KINDS


def check_description(described: Any, path: object, parts: Mapping[str, type]) -> None:
    """Checks the fields that every model has, and those of its parts.

    Args:
      described: content of the file.
      path: of the file, for messages.
      parts: further fields and their types.

    Raises:
      ValueError: a field is missing or of another type; the message begins with ``path``.
    """
    kind = described.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{path}: expected a kind of {', '.join(KINDS)}, received {kind!r:.80}")
    required: dict[str, type] = {"name": str, "preprocessing": dict, **parts}
    if kind in CLASSIFICATION:
        required["labels"] = list
    for name, expected in required.items():
        if not isinstance(described.get(name), expected):
            found = repr(described[name]) if name in described else "none"
            raise ValueError(
                f"{path}: {name}: expected a JSON {_JSON[expected]}, received {found:.80}; the "
                "file is damaged, or was not written by flaxnets"
            )
    labels = described["labels"] if kind in CLASSIFICATION else ["none"]
    if not labels or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{path}: labels: expected names of classes, received {labels!r:.80}")


_JSON = {str: "string", dict: "object", list: "array", int: "number"}
