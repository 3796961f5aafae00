"""Starting a run from another run's checkpoint: fine-tuning."""

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
    """The variables of a run's best checkpoint in the place of random ones.

    Parameters and statistics are taken; the step, the optimizer's state and the schedule start
    anew.

    Args:
      workdir: of the other run.
      variables: Linen's collections of this run's model.
      skipped: first parts of paths, as ``("classifier",)``, that stay as they are in ``variables``,
        whatever the checkpoint has there.

    Raises:
      FileNotFoundError: no checkpoint there.
      WorkdirError: no run there.
      ValueError: parts of the model, or of the checkpoint, that the other lacks or has in other
        shapes, unless they are ``skipped``; or a skipped part that neither has.
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
            f"model: {'; '.join(misfits)}. Parts named in initialize_except start at random"
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
    """The shapes of each part's arrays, by their path with the collection before it."""
    parts: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, shape in shapes_of(variables).items():
        parts.setdefault(path.split("/")[1], {})[path] = shape
    return parts


def _difference(there: Mapping[str, tuple[int, ...]], here: Mapping[str, tuple[int, ...]]) -> str:
    """The first array that differs."""
    path = next(p for p in sorted(there.keys() | here.keys()) if there.get(p) != here.get(p))
    return f"{path}: {there.get(path, 'absent')} there, {here.get(path, 'absent')} here"
