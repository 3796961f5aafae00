"""Inference with the checkpoint of a run, and its export."""

from flaxnets.inference.export import to_encoder_tensors, to_tensors, write_safetensors
from flaxnets.inference.loading import load, shipped_models
from flaxnets.inference.runtime.media import Limits, MediaError
from flaxnets.inference.runtime.models import Captioner, Classifier
from flaxnets.inference.runtime.readers import Reader
from flaxnets.inference.runtime.results import (
    Character,
    Label,
    Prediction,
    StreamStep,
    TextStep,
    Transcript,
)
from flaxnets.inference.store import ModelError, read_description, save_model
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
    "Captioner",
    "Character",
    "Classifier",
    "Label",
    "Limits",
    "MediaError",
    "ModelError",
    "Prediction",
    "PredictsFiles",
    "Reader",
    "StreamStep",
    "TextStep",
    "TrainedCaptioner",
    "TrainedModel",
    "Transcript",
    "WritesResults",
    "load",
    "read_description",
    "read_predictions",
    "save_model",
    "shipped_models",
    "to_encoder_tensors",
    "to_tensors",
    "write_safetensors",
]
