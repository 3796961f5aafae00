"""Video: decoding, clip sampling, transforms, and the streams of images of whole videos."""

from data.video.clips import DecodeClip, VideoRecord, VideoSource
from data.video.decoding import VideoError, VideoInfo, decode, probe
from data.video.feature_clips import FeatureClip, WholeVideos
from data.video.motion import difference_images, grey, motion_centre, square_around
from data.video.sampling import ClipSampler, DenseClip, UniformClip
from data.video.streams import (
    STREAMS,
    CutFeatures,
    StreamSource,
    segment_centres,
    select_examples,
)
from data.video.transforms import Crop, SpatialTransform, pad_clip

__all__ = [
    "STREAMS",
    "ClipSampler",
    "Crop",
    "CutFeatures",
    "DecodeClip",
    "DenseClip",
    "FeatureClip",
    "SpatialTransform",
    "StreamSource",
    "UniformClip",
    "VideoError",
    "VideoInfo",
    "VideoRecord",
    "VideoSource",
    "WholeVideos",
    "decode",
    "difference_images",
    "grey",
    "motion_centre",
    "pad_clip",
    "probe",
    "segment_centres",
    "select_examples",
    "square_around",
]
