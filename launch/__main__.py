"""Lists the programs: ``python -m launch``.

Each line is a program and the first sentence of its file.
"""

import ast
import difflib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Start": ("demo", "doctor", "train", "plan"),
    "Use a trained model": ("predict", "caption", "read", "sample", "serve", "export", "store"),
    "Measure and compare": (
        *("evaluate", "report", "runs", "track", "crossvalidate", "sweep", "compare", "reproduce"),
    ),
    "Several processes and clusters": ("local", "slurm", "kubernetes", "tpu"),
}
"""Groups, and the programs in the order in which they are listed."""
MAIN = '\nif __name__ == "__main__":\n'
OTHERS = "Others"
"""Group of the programs that no other one names."""


def find_programs(folder: Path) -> dict[str, str]:
    """Returns the first sentence of each program in a folder, by name; runs none of them.

    A program is a file that runs as ``__main__``.
    """
    found = {}
    for file in sorted(folder.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if not file.stem.startswith("_") and MAIN in text:
            doc = ast.get_docstring(ast.parse(text)) or ""
            found[file.stem] = " ".join(doc.partition("\n\n")[0].split())
    return found


def describe(programs: Mapping[str, str]) -> Iterator[str]:
    """Yields the lines of the list."""
    yield "usage: python -m launch.PROGRAM --help"
    listed = {name for names in GROUPS.values() for name in names}
    rest = tuple(name for name in programs if name not in listed)
    width = max(map(len, programs))
    for group, names in {**GROUPS, OTHERS: rest}.items():
        if here := [name for name in names if name in programs]:
            yield f"\n{group}"
            yield from (f"  {name:{width}}  {programs[name]}" for name in here)
    yield "\npython -m data.check ROOT reads a data set, and says what a training would trip over."
    yield "\npython -m launch.train --config=FILE --help lists the fields of an experiment:"
    experiments = Path(__file__).parents[1] / "experiments"
    for file in sorted(experiments.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "\ndef get_config(" in text:
            doc = ast.get_docstring(ast.parse(text)) or ""
            yield f"  experiments/{file.name}: {doc.splitlines()[0] if doc else ''}"


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].lstrip("-") not in ("help", "h", "helpshort"):
        name = sys.argv[1].removeprefix("launch.").removesuffix(".py")
        near = difflib.get_close_matches(name, find_programs(Path(__file__).parent), n=1)
        known = f"python -m launch.{near[0]}" if near else "listed by python -m launch"
        sys.exit(f"error: python -m launch takes no arguments; a program is {known}")
    try:
        print("\n".join(describe(find_programs(Path(__file__).parent))), flush=True)
    except BrokenPipeError:  # As after | head.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
