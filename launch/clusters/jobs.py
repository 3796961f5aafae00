"""Checks of a submitted program, its flags and names, shared by the launchers for clusters."""

import importlib.util
import posixpath
import re
from collections.abc import Iterable, Sequence

from flaxnets.configuration import local_path

CODE = ("flaxnets", "data", "experiments", "launch")
"""Folders of the repository that a program needs on the machine where it runs."""
GROUP_PROGRAMS = ("launch.train", "launch.evaluate")
"""Programs that may run as several processes; they have the flags of ``launch.processes``."""
# The launcher itself passes these: they tell the processes where they find each other.
OWN_FLAGS = ("coordinator", "num_processes", "process_id", "cluster")

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def check_program(program: str, arguments: Sequence[str], processes: int) -> None:
    """Checks that a program and its flags can run as a submitted job.

    Args:
      program: module of the program, as ``launch.train``.
      arguments: flags of the program, everything after ``--``.
      processes: number of processes.

    Raises:
      ValueError: no such program, or one that does not run as several processes; no flags; a flag
        that the launcher passes itself; no ``--workdir``, or a URL.
    """
    if not re.fullmatch(r"launch\.\w+", program) or importlib.util.find_spec(program) is None:
        raise ValueError(f"program: expected a module as launch.train, received {program!r}")
    if processes > 1 and program not in GROUP_PROGRAMS:
        raise ValueError(
            f"program: expected one of {', '.join(GROUP_PROGRAMS)} for {processes} processes, "
            f"received {program!r}, which runs as one process"
        )
    if not arguments:
        raise ValueError(f"expected the flags of {program} after --, received none")
    if not arguments[0].startswith("-"):
        raise ValueError(f"expected flags --NAME=VALUE after --, received {arguments[0]!r}")
    for name in OWN_FLAGS:
        if flag_value(arguments, name) is not None:
            raise ValueError(f"--{name}: set by the launcher, expected none after --")
    workdir = flag_value(arguments, "workdir")
    if not workdir:
        raise ValueError(
            f"expected --workdir=DIR among the flags of {program} after --, received none"
        )
    local_path("--workdir", workdir)  # A URL is refused now, not after the wait in a queue.


def flag_value(arguments: Sequence[str], name: str) -> str | None:
    """Returns the value of the last ``--NAME=VALUE`` or ``--NAME VALUE``; None without one."""
    value = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        key, equals, given = argument.partition("=")
        if key in (f"--{name}", f"-{name}"):
            value = given if equals else following
    return value


def workdir_of(arguments: Sequence[str], home: str) -> str:
    """Returns the absolute path of ``--workdir`` for a program that runs in the folder ``home``."""
    return posixpath.normpath(posixpath.join(home, flag_value(arguments, "workdir") or ""))


def lies_under(path: str, folder: str) -> bool:
    """Returns True if an absolute, normalised path is the folder or lies inside it."""
    return posixpath.commonpath([path, folder]) == folder


def check_label(argument: str, value: str, longest: int = 63) -> None:
    """Checks for a DNS label that starts with a letter (RFC 1035), of up to ``longest`` characters.

    Raises:
      ValueError: other characters, or too long.
    """
    if not _LABEL.fullmatch(value) or len(value) > longest:
        raise ValueError(
            f"{argument}: expected up to {longest} lower-case letters, digits and '-', a letter "
            f"first and no '-' last, received {value!r}"
        )


def parse_pairs(argument: str, items: Iterable[str]) -> dict[str, str]:
    """Returns ``{"A": "B"}`` for ``A=B``, in the order of the items.

    Raises:
      ValueError: no ``=``, no name before it, or the same name twice.
    """
    pairs: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise ValueError(f"{argument}: expected NAME=VALUE, received {item!r}")
        if name in pairs:
            raise ValueError(f"{argument}: expected each name once, received {name} twice")
        pairs[name] = value
    return pairs
