"""Programs, one file each: ``python -m launch.NAME`` from the root of the repository."""

from __future__ import annotations  # Older Pythons must get as far as the check below.

import importlib.metadata
import sys
from pathlib import Path


def find_problem() -> str | None:
    """Returns how this environment fails ``pyproject.toml``; None if programs can run in it.

    It checks Python's version, that all dependencies are installed, and the versions of JAX and
    Flax, whose interfaces change with minor versions.
    """
    where = f"the environment {sys.prefix}"
    if sys.version_info < (3, 11):  # noqa: UP036 (pip checks it, but programs run uninstalled)
        return f"expected Python 3.11 or newer, received {sys.version.split()[0]} in {where}"
    import tomllib

    try:
        from packaging.requirements import Requirement  # A dependency of tensorboardX.
    except ModuleNotFoundError:
        return f"the dependencies of flaxnets are not installed in {where}"
    file = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    for requirement in map(Requirement, project["dependencies"]):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        name, bounds = requirement.name, requirement.specifier
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return f"{name} is not installed in {where}"
        if name in ("jax", "flax") and not bounds.contains(version, prereleases=True):
            return f"expected {name}{bounds}, received {name} {version} in {where}"
    return None


# Under python -m, a package is imported before its program, while this is the argument. Tests and
# other programs that import parts of launch are not checked.
if sys.argv[:1] == ["-m"] and (problem := find_problem()):
    sys.exit(f"error: {problem}; make demo sets up .venv: use .venv/bin/python")
