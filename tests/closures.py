"""Closures of imports: the files that a training of an experiment reads.

    python -m tests.closures

``__init__.py`` re-exports names for users; modules import from each other, so it is not counted.
Imports inside of functions are.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "flaxnets", "experiments", "launch")
MOST_FILES = {"lrcn_ucf101": 75, "show_attend_tell": 95, "moving_shapes": 65}
"""Experiments, and the most files that training one may import."""


def closure(*files: str) -> list[str]:
    """Returns the files of the repository that the given ones import, themselves included.

    Args:
      *files: paths from the root of the repository.
    """
    found: set[Path] = set()
    waiting = [ROOT / file for file in files]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(_imported(path))
    return sorted(str(path.relative_to(ROOT)) for path in found)


def _imported(path: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            file = ROOT / (name.replace(".", "/") + ".py")
            if name.split(".")[0] in PACKAGES and file.is_file():
                yield file


if __name__ == "__main__":
    for experiment, most in MOST_FILES.items():
        files = closure(f"experiments/{experiment}.py", "launch/train.py")
        print(f"{experiment}: {len(files)} files, at most {most}")
        print("".join(f"  {file}\n" for file in files))
