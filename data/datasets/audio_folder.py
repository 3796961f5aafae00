"""Recordings on disk, with labels or with texts; FFmpeg's containers of sound by PyAV.

With labels, as videos (``data/datasets/labelled_files.py``): class folders, or a table whose
columns may also name the speaker, the split, or the fold of a cross-validation::

    ROOT/dog_bark/1.ogg                 file,label,fold                file,digit,speaker
    ROOT/rain/anna/2.FLAC               audio/1.ogg,dog_bark,1         train/0_anna_7.flac,0,anna

With texts, as lines of text (``data/datasets/line_folder.py``): a text beside each recording, or a
table of files and texts::

    ROOT/train/anna_1.wav               path,sentence,speaker
    ROOT/train/anna_1.txt               anna_1.wav,"Once upon a time",anna
"""

import os

from data.datasets.labelled_files import LabelledFiles, read_labelled_files
from data.datasets.line_folder import TextLines, read_text_lines


def read_sounds(
    root: str | os.PathLike[str] = "",
    list_file: str | os.PathLike[str] = "",
    *,
    group_pattern: str = "",
    fold: int = 1,
) -> LabelledFiles:
    """Reads which labelled recordings there are, their classes, groups and splits; opens none.

    Args:
        root: folder of the class folders, or to which the paths of a table are relative; empty with
            a table: the table's folder.
        list_file: the table; empty: the root's folders.
        group_pattern: regular expression that finds the group, as the speaker, in a file's name;
            empty: the table's column, if there is one.
        fold: of a table with a column of folds and none of splits the one that is tested.

    Returns:
        The recordings in the order of their names; ``make_split`` completes their splits.

    Raises:
        FileNotFoundError: the root, the table or a listed file does not exist.
        ValueError: as ``read_labelled_files``.
    """
    return read_labelled_files(
        root, kind="recording", list_file=list_file, group_pattern=group_pattern, fold=fold
    )


def read_speech(
    root: str | os.PathLike[str] = "",
    list_file: str | os.PathLike[str] = "",
    *,
    group_pattern: str = "",
    keep_empty: bool = False,
) -> TextLines:
    """Reads which recordings with texts there are, their groups and splits; opens none.

    Args:
        root: folder of the recordings, or to which the paths of a table are relative; empty with a
            table: the table's folder.
        list_file: the table; empty: a text beside each recording.
        group_pattern: as for ``read_sounds``.
        keep_empty: keep recordings with empty texts, as of noise.

    Returns:
        The recordings in the order of their names, texts in NFC; ``split_lines`` completes their
        splits.

    Raises:
        FileNotFoundError: the root, the table or a recording of the table does not exist.
        ValueError: as ``read_text_lines``.
    """
    return read_text_lines(
        root, list_file, group_pattern=group_pattern, keep_empty=keep_empty, kind="recording"
    )
