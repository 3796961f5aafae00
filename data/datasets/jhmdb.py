"""JHMDB: 928 clips of HMDB51 in 21 classes, as videos or frames, with three splits.

Jhuang et al., 2013, "Towards understanding action recognition". Joints and masks are not read::

    ReCompress_Videos/CLASS/NAME.avi             or Rename_Images/CLASS/NAME/00001.png
    splits/CLASS_test_split1.txt                 "NAME.avi 1": 1 train, 2 test
"""

from pathlib import Path

from data.datasets.hmdb51 import read_marked_splits
from data.datasets.labelled_files import LabelledFiles

VIDEO_FOLDERS = ("ReCompress_Videos", "Rename_Images", "videos", "frames")
LIST_FOLDERS = ("splits",)


def read_jhmdb(root: str | Path, fold: int = 1) -> LabelledFiles:
    """Reads one of the three splits of JHMDB.

    Args:
        root: folder of ``splits`` and ``ReCompress_Videos`` or ``Rename_Images``; videos are
            preferred to frames.
        fold: number of the split, from 1 on.

    Raises:
        FileNotFoundError: the root, a folder in it, or a listed clip does not exist.
        ValueError: no such fold, split files of other classes than the folders', a damaged line, or
            a class without training clips.
    """
    return read_marked_splits(root, fold, "JHMDB", VIDEO_FOLDERS, LIST_FOLDERS)
