"""Sequences and series: tables, splits, windows, streams, scaling, vocabularies, generators."""

from data.series.generated import AddingProblem, CopyMemory
from data.series.scaling import Scaling
from data.series.scores import FORECAST_SCORES, forecast_scores, phm_score
from data.series.sequences import (
    CLASSIFICATION_STEP_KEYS,
    STEP_KEYS,
    LabelledSequences,
    NextSteps,
    SequenceSource,
    sequences_of_table,
)
from data.series.splits import select_groups, split_by_group, split_by_time
from data.series.streams import StrandPlan, StreamWindows
from data.series.tables import Section, Series, SeriesTable
from data.series.vocabulary import UnknownTokens, Vocabulary
from data.series.windows import ForecastWindows, LabelledWindows, fit_scaling

__all__ = [
    "CLASSIFICATION_STEP_KEYS",
    "FORECAST_SCORES",
    "STEP_KEYS",
    "AddingProblem",
    "CopyMemory",
    "ForecastWindows",
    "LabelledSequences",
    "LabelledWindows",
    "NextSteps",
    "Scaling",
    "Section",
    "SequenceSource",
    "Series",
    "SeriesTable",
    "StrandPlan",
    "StreamWindows",
    "UnknownTokens",
    "Vocabulary",
    "fit_scaling",
    "forecast_scores",
    "phm_score",
    "select_groups",
    "sequences_of_table",
    "split_by_group",
    "split_by_time",
]
