"""Records of a run for the tests of reports."""

from typing import Any

import numpy as np


def make_record(index: int, label: int, probabilities: list[float]) -> dict[str, Any]:
    prediction = int(np.argmax(probabilities))
    return {
        "index": index,
        "label": label,
        "prediction": prediction,
        "probabilities": probabilities,
    }


METRICS = [
    {
        "step": 10,
        "split": "train",
        "loss": 2.0,
        "accuracy": 0.1,
        "gradient_norm": 3.0,
        "learning_rate": 1e-3,
        "steps_per_second": 1.0,
        "clips_per_second": 8.0,
        "data_wait_share": 0.5,
    },
    {
        "step": 20,
        "split": "train",
        "loss": 1.0,
        "accuracy": 0.6,
        "gradient_norm": 1.0,
        "learning_rate": 5e-4,
        "steps_per_second": 2.0,
        "clips_per_second": 16.0,
        "data_wait_share": 0.2,
    },
    {"step": 10, "split": "validation", "loss": 1.8, "accuracy": 0.75, "examples": 4.0},
    {"step": 20, "split": "validation", "loss": 1.5, "accuracy": 0.5, "examples": 4.0},
]
