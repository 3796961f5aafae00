"""Data that a trained model is evaluated on: those of its run, moved, or others."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flaxnets.training.workdir import Workdir


class Given(NamedTuple):
    """Paths in which the flags of an evaluation differ from its run."""

    root: bool = False
    list: bool = False


def find_given(folder: Path, data: Any) -> Given:
    """Returns which of ``data.root`` and ``data.list`` are not those of the run in a workdir.

    Neither, of a folder that holds the assets of a run alone.
    """
    if not (folder / "config.json").exists():
        return Given()
    recorded = Workdir(folder).read_config()["config"]["data"]

    def differs(name: str) -> bool:
        now, then = str(getattr(data, name)), str(recorded.get(name, ""))
        return bool(now) and (not then or os.path.abspath(now) != os.path.abspath(then))

    return Given(differs("root"), differs("list"))


def match_names(names: Sequence[str], known: Sequence[str]) -> list[str | None]:
    """Returns for each path the one of ``known`` that names the same file, or None.

    Two paths do if they are equal or one is the end of the other, as after a move or where one of
    them is absolute. Each of ``known`` is found once, by its own name if that is there.

    >>> match_names(["lines/a.png", "b.png", "xb.png"], ["a.png", "old/b.png"])
    ['a.png', 'old/b.png', None]
    """
    exact, there = set(known), set(names)
    by_file = defaultdict(list)
    for name in known:
        if name not in there:
            by_file[os.path.basename(name)].append(name)

    def match(name: str) -> str | None:
        if name in exact:
            return name
        others = by_file[os.path.basename(name)]
        for other in others:
            short, long = sorted((name, other), key=len)
            if long.endswith(f"/{short}"):
                others.remove(other)
                return other
        return None

    return [match(name) for name in names]


class Placed(NamedTuple):
    """The files that an evaluation reads, by position, and their splits."""

    positions: list[int]
    splits: tuple[str, ...]
    note: str
    """Numbers of files, in words; empty if these are the run's data."""


def place(
    matched: Sequence[str | None],
    own_splits: Sequence[str],
    run_splits: Mapping[str, str],
    given: Given,
    noun: str,
) -> Placed:
    """Returns the splits of the files of an evaluation, so that no training file is tested.

    Files of the run keep their split. Where the flags name other data, further files are tested, or
    have the split that these data name; the run's own data have no further ones.

    Args:
      matched: the name in the run of each file; None: not of the run.
      own_splits: of each file, "" if the data name none.
      run_splits: split of each file of the run, by name.
      given: whether the flags name other data.
      noun: the files, in words.
    """
    known = [name for name in matched if name]
    count = len(matched)
    if not known:
        splits = tuple(split or "test" for split in own_splits)
        return Placed(list(range(count)), splits, f"none of the run's {noun}: they are tested")
    whole = set(known) >= set(run_splits) or len(known) == count
    if not any(given) or (whole and not given.list):  # Moved; a reader tells what is missing.
        positions = [index for index, name in enumerate(matched) if name]
        return Placed(positions, tuple(run_splits[name] for name in known), "")
    splits = tuple(
        run_splits[name] if name else own or "test"
        for name, own in zip(matched, own_splits, strict=True)
    )
    trained = sum(split in ("train", "validation") for split in map(run_splits.get, known))
    note = (
        f"{len(known)} of {count} {noun} are the run's and keep their split, {trained} of them "
        f"trained or validated it; the others are tested"
    )
    return Placed(list(range(count)), splits, note)
