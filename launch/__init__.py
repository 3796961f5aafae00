"""Programs, one file each: ``python -m launch.NAME`` from the root of the repository."""

import importlib.metadata
import re
import sys
from pathlib import Path


def find_problem() -> str | None:
    """Returns what this environment lacks of ``pyproject.toml``; None if programs can run in it."""
    where = f"the environment {sys.prefix}"
    if sys.version_info < (3, 11):  # noqa: UP036 (pip checks it, but programs run uninstalled)
        return f"expected Python 3.11 or newer, received {sys.version.split()[0]} in {where}"
    import tomllib

    file = Path(__file__).parents[1] / "pyproject.toml"
    requirements = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["dependencies"]
    versions = {}
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            versions[requirement] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return f"{name} is not installed in {where}"
    from packaging.requirements import Requirement  # A requirement of tensorboardX.

    for text, version in versions.items():
        requirement = Requirement(text)
        applies = requirement.marker is None or requirement.marker.evaluate()
        # Other packages promise compatibility; JAX and Flax change their interfaces often.
        if requirement.name in ("jax", "flax") and applies and version not in requirement.specifier:
            return (
                f"expected {requirement.name}{requirement.specifier}, received {version} in {where}"
            )
    return None


# A package is imported before its program, with this argument, under python -m only.
if sys.argv[:1] == ["-m"] and (problem := find_problem()):
    sys.exit(f"error: {problem}; make demo sets up .venv: use .venv/bin/python")
