"""Programs, one file each: ``python -m launch.NAME`` from the root of the repository."""

from __future__ import annotations  # Older Pythons must get as far as the check below.

import importlib.metadata
import importlib.util
import io
import locale
import os
import re
import sys
from pathlib import Path

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
TUNABLES = "GLIBC_TUNABLES"
"""Variable that glibc reads when a process starts."""
RESTARTED = "FLAXNETS_RESTARTED"
"""Variable with the number of the process that restarted Python last."""


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


def find_foreign() -> str | None:
    """Returns which package of this repository another one hides; None if none is hidden.

    Other people have packages ``data`` and ``experiments`` too: in the working directory, on
    ``PYTHONPATH`` or installed. The root of this repository therefore becomes the first folder in
    which modules are looked for. Only what was imported before cannot be replaced.
    """
    root = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    for name in ("data", "experiments", "flaxnets"):
        module = sys.modules.get(name)
        spec = importlib.util.find_spec(name) if module is None else module.__spec__
        origin = spec.origin if spec is not None else None
        if origin is None or not Path(origin).resolve().is_relative_to(root):
            return (
                f"expected the package {name} of {root}, received {origin or 'none'}; "
                "something imports it before the program starts, as a sitecustomize.py does"
            )
    return None


def open_standard_streams() -> None:
    """Opens standard input, output and error of this process on ``/dev/null`` if they are closed.

    Otherwise the next file to be opened, as a checkpoint, would get the number of a closed one, and
    what libraries in C++ print would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Gets the lowest free number, this one.
        if getattr(sys, name) is None:
            raw = io.FileIO(number, "r" if name == "stdin" else "w", closefd=False)
            setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", write_through=True))


def needs_utf8() -> bool:
    """Returns True unless Python is in UTF-8 mode or the locale's encoding is UTF-8 already.

    Paths, class names and captions have letters that ASCII and Latin-1 have not.
    """
    return not (sys.flags.utf8_mode or locale.getencoding().lower().replace("-", "") == "utf8")


def huge_page_tunables(
    tunables: str, *, enabled: Path = HUGE_PAGES, library: str | None = None
) -> str | None:
    """Returns glibc's tunables with huge pages; None if they are set already or change nothing.

    XLA takes memory for the arrays of a step anew in every step, and Linux hands it out in pages of
    4 kB, each with an interrupt. With pages of 2 MB most trainings on a CPU are 1.2 to 1.4 times as
    fast (``experiments/results/sequence_steps.md``). Where the system gives them to no program, or
    to all, there is nothing to ask for; what a user has set stays.

    Args:
      tunables: value of ``GLIBC_TUNABLES``.
      enabled: Linux's file that tells which programs get huge pages.
      library: name and version of the C library; by default that of this Python.
    """
    try:
        asked = "[madvise]" in enabled.read_text(encoding="ascii")
        name, _, version = (library or os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        numbers = [int(part) for part in version.split(".")]
    except (OSError, ValueError):  # No Linux, or another C library.
        return None
    if (
        not asked
        or name != "glibc"
        or numbers < [2, 35]
        or any(part.startswith("glibc.malloc.hugetlb=") for part in tunables.split(":"))
    ):
        return None
    return ":".join(filter(None, (tunables, "glibc.malloc.hugetlb=1")))


def restart_python() -> None:
    """Restarts Python, once, if it needs UTF-8 mode or huge pages, which are set at its start.

    Processes that this one starts have both, too.
    """
    if not sys.executable or os.environ.get(RESTARTED) == str(os.getpid()):
        return  # Some systems drop such variables: once is enough, whatever came of it.
    options: list[str] = []
    if needs_utf8():
        os.environ["PYTHONUTF8"] = "1"
        options += ["-X", "utf8"]
    tunables = huge_page_tunables(os.environ.get(TUNABLES, ""))
    if tunables is not None:
        os.environ[TUNABLES] = tunables
    if options or tunables is not None:
        os.environ[RESTARTED] = str(os.getpid())  # A restarted process keeps its number.
        os.execv(sys.executable, [sys.executable, *options, *sys.orig_argv[1:]])


def is_doctor(arguments: list[str]) -> bool:
    """Returns True for ``python -m launch.doctor``, which explains what is wrong with a Python."""
    for number, argument in enumerate(arguments):
        if found := re.fullmatch("-[bBdEiIOPqRsSuvx]*m(.*)", argument):  # Also -um NAME, -mNAME.
            return ([found[1]] if found[1] else arguments[number + 1 :])[:1] == ["launch.doctor"]
    return False


# Under python -m, a package is imported before its program, while this is the argument. Tests and
# other programs that import parts of launch are not checked.
if sys.argv[:1] == ["-m"]:
    open_standard_streams()
    problem = find_problem()
    if not is_doctor(sys.orig_argv):
        if problem:
            sys.exit(
                f"error: {problem}; make demo sets up .venv: use .venv/bin/python; "
                "python -m launch.doctor tells more"
            )
        if foreign := find_foreign():
            sys.exit(f"error: {foreign}")
    if not problem:
        restart_python()
