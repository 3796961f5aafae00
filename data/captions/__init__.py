"""Captions: images, vocabulary, examples, length buckets, scores."""

from data.captions.examples import CaptionSource, DecodedImages, ImageSource
from data.captions.images import (
    ImageError,
    ImageTransform,
    RandomCrop,
    decode_image,
    read_image,
    resize_crop,
)
from data.captions.java_scorers import ScorerError
from data.captions.length_buckets import LengthBuckets, choose_boundaries
from data.captions.ptb_tokenizer import tokenize
from data.captions.scores import (
    METRICS,
    WITHOUT_JAVA,
    CaptionScorer,
    CaptionScores,
    write_results,
)
from data.captions.vocabulary import (
    BOS,
    EOS,
    PAD,
    SPECIAL_WORDS,
    UNK,
    Vocabulary,
    join_words,
    mirror_caption,
    pad_captions,
    separate_words,
    split_words,
)

__all__ = [
    "BOS",
    "EOS",
    "METRICS",
    "PAD",
    "SPECIAL_WORDS",
    "UNK",
    "WITHOUT_JAVA",
    "CaptionScorer",
    "CaptionScores",
    "CaptionSource",
    "DecodedImages",
    "ImageError",
    "ImageSource",
    "ImageTransform",
    "LengthBuckets",
    "RandomCrop",
    "ScorerError",
    "Vocabulary",
    "choose_boundaries",
    "decode_image",
    "join_words",
    "mirror_caption",
    "pad_captions",
    "read_image",
    "resize_crop",
    "separate_words",
    "split_words",
    "tokenize",
    "write_results",
]
