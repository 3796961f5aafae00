"""Hyper-parameter searches."""

from launch.sweeps.page import build_page, summarize, write_page
from launch.sweeps.plan import Plan, make_plan
from launch.sweeps.space import load_suggest, make_cells, parse_spaces
from launch.sweeps.study import (
    Database,
    DatabaseUnreachable,
    Objective,
    Settings,
    load_study,
    open_study,
)
from launch.sweeps.trial import Interrupted, Runner
from launch.sweeps.worker import TooManyFailures, work

__all__ = [
    "Database",
    "DatabaseUnreachable",
    "Interrupted",
    "Objective",
    "Plan",
    "Runner",
    "Settings",
    "TooManyFailures",
    "build_page",
    "load_study",
    "load_suggest",
    "make_cells",
    "make_plan",
    "open_study",
    "parse_spaces",
    "summarize",
    "work",
    "write_page",
]
