"""Tasks: how a model is called, its loss, its metrics and its predictions."""

from flaxnets.tasks.captioning import Captioning, ScheduledSampling
from flaxnets.tasks.cider import DocumentFrequencies, cider_d
from flaxnets.tasks.ctc import CTC, CTCSearch
from flaxnets.tasks.self_critical import SelfCritical
from flaxnets.tasks.task import Task
from flaxnets.tasks.video_classification import VideoClassification

__all__ = [
    "CTC",
    "CTCSearch",
    "Captioning",
    "DocumentFrequencies",
    "ScheduledSampling",
    "SelfCritical",
    "Task",
    "VideoClassification",
    "cider_d",
]
