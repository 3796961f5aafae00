"""Programs of the repository from any folder: ``flaxnets train …`` is ``python -m launch.train …``.

The folders ``launch``, ``experiments`` and ``data`` are no part of the wheel, and other people's
packages have the same names. This looks for them beside ``flaxnets`` alone.
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""Root of the repository, or folder of the installed packages."""


def main() -> None:
    """Runs the program that the first argument names; without one, lists them."""
    if not (ROOT / "launch" / "__init__.py").is_file() or not (ROOT / "pyproject.toml").is_file():
        sys.exit(
            f"error: the programs are in the repository, and flaxnets is installed without it in "
            f"{ROOT}; clone the repository and install it by pip install -e . there"
        )
    name, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("__main__", [])
    if name.startswith("-"):
        name, rest = "__main__", [name, *rest]
    elif not (ROOT / "launch" / f"{name}.py").is_file():
        sys.exit(f"error: no program {name!r}; flaxnets without arguments lists them")
    sys.path.insert(0, str(ROOT))
    # As under python -m: then the package launch checks the environment.
    sys.argv = ["-m", *rest]
    runpy.run_module(f"launch.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
