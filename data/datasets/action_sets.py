"""Published data sets of actions in videos, by name."""

from collections.abc import Callable
from pathlib import Path

from data.datasets.hmdb51 import read_hmdb51
from data.datasets.jester import read_jester
from data.datasets.jhmdb import read_jhmdb
from data.datasets.kinetics import read_kinetics
from data.datasets.labelled_files import LabelledFiles, read_ucf101
from data.datasets.something import read_something

ACTION_SETS: dict[str, Callable[[str | Path, int], LabelledFiles]] = {
    "hmdb51": read_hmdb51,
    "jester": read_jester,
    "jhmdb": read_jhmdb,
    "kinetics": read_kinetics,
    "something": read_something,
    "ucf101": read_ucf101,
}
"""Readers, called with the data set's folder and the number of its split, from 1 on."""
