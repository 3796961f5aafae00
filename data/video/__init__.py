"""Video: decoding, clip sampling, transforms, and the streams of images of whole videos.

``frame_folders`` reads folders of frames and ``flow`` optical flow; they are not imported here.
"""

from data.video.clips import (
    ClipSampler,
    DecodeClip,
    DenseClip,
    FileRecord,
    UniformClip,
    VideoFiles,
    VideoReader,
    VideoSource,
)
from data.video.decoding import (
    FORMATS,
    MAX_DAMAGED_SHARE,
    MAX_PIXELS,
    VideoError,
    VideoInfo,
    decode,
    decode_all,
    probe,
)
from data.video.feature_clips import FeatureClip, WholeVideos
from data.video.streams import (
    FLOW_STREAMS,
    STREAMS,
    CutFeatures,
    CutJoined,
    JoinedFeatures,
    StreamSource,
    difference_frames,
    difference_image,
    difference_images,
    grey,
    motion_centre,
    segment_centres,
    select_examples,
    square_around,
)
from data.video.transforms import Crop, SpatialTransform, mirror_flow, pad_clip

__all__ = [
    "FLOW_STREAMS",
    "FORMATS",
    "MAX_DAMAGED_SHARE",
    "MAX_PIXELS",
    "STREAMS",
    "ClipSampler",
    "Crop",
    "CutFeatures",
    "CutJoined",
    "DecodeClip",
    "DenseClip",
    "FeatureClip",
    "FileRecord",
    "JoinedFeatures",
    "SpatialTransform",
    "StreamSource",
    "UniformClip",
    "VideoError",
    "VideoFiles",
    "VideoInfo",
    "VideoReader",
    "VideoSource",
    "WholeVideos",
    "decode",
    "decode_all",
    "difference_frames",
    "difference_image",
    "difference_images",
    "grey",
    "mirror_flow",
    "motion_centre",
    "pad_clip",
    "probe",
    "segment_centres",
    "select_examples",
    "square_around",
]
