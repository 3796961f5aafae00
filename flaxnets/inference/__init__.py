"""Inference with the checkpoint of a run, and its export."""

from flaxnets.inference.export import to_encoder_tensors, to_tensors, write_safetensors
from flaxnets.inference.trained_captioner import Caption, Captioned, TrainedCaptioner
from flaxnets.inference.trained_model import (
    PredictsFiles,
    TrainedModel,
    WritesResults,
    read_predictions,
)

__all__ = [
    "Caption",
    "Captioned",
    "PredictsFiles",
    "TrainedCaptioner",
    "TrainedModel",
    "WritesResults",
    "read_predictions",
    "to_encoder_tensors",
    "to_tensors",
    "write_safetensors",
]
