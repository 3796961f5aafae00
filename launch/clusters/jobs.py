"""What submitters to a cluster check before they hand a program on: its flags, names, pairs."""

import difflib
import importlib.util
import posixpath
import re
from collections.abc import Collection, Iterable, Sequence

CODE = ("flaxnets", "data", "experiments", "launch")
"""The folders that a program needs where it runs."""
GROUP_PROGRAMS = ("launch.train", "launch.evaluate")
"""Those that may be one process of several, and have the flags of ``launch.program``."""
# The submitter says itself where the processes find each other.
OWN_FLAGS = ("coordinator", "num_processes", "process_id", "cluster")

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def check_program(program: str, arguments: Sequence[str], processes: int) -> None:
    """Refuses a program, or flags of it, that cannot run as a submitted job.

    Args:
      program: its module.
      arguments: its flags, what stands behind ``--``.
      processes: how many of it are to run.

    Raises:
      ValueError: no such program, or one that does not run as several processes; no flags; one
        that the submitter gives itself; no workdir.
    """
    if not re.fullmatch(r"launch\.\w+", program) or importlib.util.find_spec(program) is None:
        raise ValueError(f"program: expected a module as launch.train, received {program!r}")
    if processes > 1 and program not in GROUP_PROGRAMS:
        raise ValueError(
            f"program: expected one of {', '.join(GROUP_PROGRAMS)} for {processes} processes, "
            f"received {program!r}, which runs as one"
        )
    if not arguments:
        raise ValueError(f"expected the flags of {program} behind --, received none")
    if not arguments[0].startswith("-"):
        raise ValueError(f"expected flags --NAME=VALUE behind --, received {arguments[0]!r}")
    for name in OWN_FLAGS:
        if flag_value(arguments, name) is not None:
            raise ValueError(f"--{name}: given by the submitter, expected none behind --")
    if not flag_value(arguments, "workdir"):
        raise ValueError(
            f"expected --workdir=DIR among the flags of {program} behind --, received none"
        )


def flag_value(arguments: Sequence[str], name: str) -> str | None:
    """The value that the last ``--NAME=VALUE`` or ``--NAME VALUE`` gives; None without one."""
    value = None
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        key, equals, given = argument.partition("=")
        if key in (f"--{name}", f"-{name}"):
            value = given if equals else following
    return value


def workdir_of(arguments: Sequence[str], home: str) -> str:
    """The absolute path of the flags' workdir for a program that runs in the folder ``home``."""
    return posixpath.normpath(posixpath.join(home, flag_value(arguments, "workdir") or ""))


def lies_under(path: str, folder: str) -> bool:
    """Whether an absolute, normalised path is a folder or lies in it."""
    return posixpath.commonpath([path, folder]) == folder


def check_label(argument: str, value: str, longest: int = 63) -> None:
    """Refuses what is no DNS label that starts with a letter (RFC 1035), of up to ``longest``.

    Raises:
      ValueError: other characters, or too long.
    """
    if not _LABEL.fullmatch(value) or len(value) > longest:
        raise ValueError(
            f"{argument}: expected up to {longest} lower-case letters, digits and '-', a letter "
            f"first and no '-' last, received {value!r}"
        )


def parse_pairs(argument: str, items: Iterable[str]) -> dict[str, str]:
    """``{"A": "B"}`` from ``A=B``, in their order.

    Raises:
      ValueError: no ``=``, no name before it, or a name twice.
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


def one_of(argument: str, value: str, known: Collection[str]) -> str:
    """The value, if it is known.

    Raises:
      ValueError: it is not; with the nearest, if there is one.
    """
    if value in known:
        return value
    near = difflib.get_close_matches(value, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{argument}: expected one of {', '.join(known)}, received {value!r}{hint}")
