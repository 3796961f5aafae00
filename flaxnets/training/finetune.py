"""Fine-tuning: initial variables from the best checkpoint of another run."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxnets.training.checkpoint import restore_variables, shapes_of
from flaxnets.training.workdir import Workdir

logger = logging.getLogger(__name__)


def initialize_from(
    workdir: Path, variables: Mapping[str, Any], skipped: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns variables with the parameters and statistics of another run's best checkpoint.

    Parameters are the averaged ones if that run kept an average. Step, optimizer state and schedule
    are not taken.

    Args:
      workdir: of the other run.
      variables: Linen's collections of this run's model.
      skipped: top-level parts, as ``("classifier",)``, that keep the values of ``variables``,
        whatever the checkpoint has there.

    Raises:
      FileNotFoundError: the other run has no checkpoint.
      WorkdirError: the folder has no run.
      ValueError: a part that only the model or only the checkpoint has, or that differs in shape,
        and is not ``skipped``; or a skipped part that neither has.
    """
    step, saved = restore_variables(Workdir(workdir))
    there, here = _parts(saved), _parts(variables)
    unknown = [part for part in skipped if part not in there.keys() | here.keys()]
    if unknown:
        raise ValueError(
            f"initialize_except: no part {', '.join(unknown)} in the model or in {workdir}; there "
            f"are {', '.join(sorted(there.keys() | here.keys()))}"
        )
    misfits = [
        f"{part} ({_difference(there.get(part, {}), here.get(part, {}))})"
        for part in sorted(there.keys() | here.keys())
        if part not in skipped and there.get(part) != here.get(part)
    ]
    if misfits:
        raise ValueError(
            f"initialize_from: parts of the checkpoint {workdir}/checkpoints/{step} do not fit the "
            f"model: {'; '.join(misfits)}. Parts named in initialize_except are not loaded"
        )
    logger.info(
        "parameters start from step %d of %s%s; step, optimizer and schedule start anew",
        step,
        workdir,
        f", but for {', '.join(skipped)}" if skipped else "",
    )
    return {
        collection: {
            part: tree if part in skipped else saved[collection][part]
            for part, tree in parts.items()
        }
        for collection, parts in variables.items()
    }


def _parts(variables: Mapping[str, Any]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Returns the shapes of each top-level part, by path with the collection before it."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in shapes_of(variables).items():
        parts.setdefault(path.split("/")[1], {})[path] = shape
    return parts


def _difference(there: Mapping[str, tuple[int, ...]], here: Mapping[str, tuple[int, ...]]) -> str:
    """Returns the first array that differs, with both shapes."""
    path = next(p for p in sorted(there.keys() | here.keys()) if there.get(p) != here.get(p))
    return f"{path}: {there.get(path, 'absent')} there, {here.get(path, 'absent')} here"
