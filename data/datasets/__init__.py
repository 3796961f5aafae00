"""Readers of data sets, one module per format on disk.

Each module's ``read_split`` lists the files of one split with their labels or captions.
``coco_captions_tfds`` is not imported here: it needs ``tensorflow_datasets``.
"""

from data.datasets import coco_captions, flickr8k, karpathy, ucf101
from data.datasets.captioned_images import CaptionedImages
from data.datasets.ucf101 import VideoList

__all__ = [
    "CaptionedImages",
    "VideoList",
    "coco_captions",
    "flickr8k",
    "karpathy",
    "ucf101",
]
