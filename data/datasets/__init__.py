"""Readers of data sets, one module per format on disk.

A format's ``read_split`` lists the files of one split with their labels or captions; files of
one's own are read by ``read_labelled_files`` and split by ``make_split``, captions of one's own by
``read_captioned_images``, lines of text by ``line_folder``, recordings by ``audio_folder``, series
by ``series_csv``, ``ts_files``, ``token_files``, ``piano_rolls``, ``mnist`` and ``cmapss``.
Published data sets of actions, as HMDB51 and Kinetics, are read by ``action_sets.ACTION_SETS``.
What ``python -m data.convert`` made of a data set is read as the data set itself;
``array_record_folder`` looks for damaged shards. Data sets of TFDS are read by ``tfds_records``,
its COCO by ``coco_captions_tfds``, which is not imported here: it needs ``tensorflow_datasets``.
"""

from data.datasets import (
    coco_captions,
    flickr8k,
    karpathy,
    ucf101,
)
from data.datasets.captioned_images import CaptionedImages
from data.datasets.image_captions import ImageCaptions, read_captioned_images
from data.datasets.labelled_files import LabelledFiles, read_labelled_files
from data.datasets.splits import make_split
from data.datasets.ucf101 import VideoList

__all__ = [
    "CaptionedImages",
    "ImageCaptions",
    "LabelledFiles",
    "VideoList",
    "coco_captions",
    "flickr8k",
    "karpathy",
    "make_split",
    "read_captioned_images",
    "read_labelled_files",
    "ucf101",
]
