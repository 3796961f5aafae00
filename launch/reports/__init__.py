"""Reports of runs: the page of one run, the table of many, and drawings of attention."""

from launch.reports.captions import (
    CaptionAttention,
    Gallery,
    draw_attention,
    make_galleries,
)
from launch.reports.charts import Bars, Chart, make_bars, make_charts
from launch.reports.clips import make_frames, make_strips
from launch.reports.forecasts import Forecasts, make_forecasts
from launch.reports.run_page import Run, build_page, write_report
from launch.reports.run_table import (
    RunSummary,
    build_runs_page,
    find_runs,
    format_table,
)
from launch.reports.statistics import (
    Rate,
    Speed,
    confusion_matrix,
    speed_of,
    top_k_rate,
)
from launch.reports.transcripts import Transcripts, align, make_transcripts

__all__ = [
    "Bars",
    "CaptionAttention",
    "Chart",
    "Forecasts",
    "Gallery",
    "Rate",
    "Run",
    "RunSummary",
    "Speed",
    "Transcripts",
    "align",
    "build_page",
    "build_runs_page",
    "confusion_matrix",
    "draw_attention",
    "find_runs",
    "format_table",
    "make_bars",
    "make_charts",
    "make_forecasts",
    "make_frames",
    "make_galleries",
    "make_strips",
    "make_transcripts",
    "speed_of",
    "top_k_rate",
    "write_report",
]
