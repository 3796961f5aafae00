"""Configuration of the documentation; ``make docs`` builds it offline, with warnings as errors."""

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from jupyter_cache import get_cache

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

# The programs of the tutorials run as children of the build: from the root of the repository, with
# the interpreter that builds, on the CPU, and with one cache of compiled functions for all of them.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["PYTHONPATH"] = str(ROOT)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / "docs" / "_build" / "jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

# Kernels read this profile alone, not the user's: they do not warn that they listen on TCP, and
# their %%bash keeps the lines of programs whole.
profile = ROOT / "docs" / "_build" / "ipython" / "profile_default"
(profile / "startup").mkdir(parents=True, exist_ok=True)
(profile / "ipython_kernel_config.py").write_text('get_config().IPKernelApp.log_level = "ERROR"\n')
shutil.copy(ROOT / "docs" / "_ext" / "bash_cells.py", profile / "startup")
os.environ["IPYTHONDIR"] = str(profile.parent)

project = "flaxnets"
author = "The flaxnets authors"
copyright = "the flaxnets authors, Apache-2.0"
release = version = metadata.version("flaxnets")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "flaxnets_docs",
]
exclude_patterns = ["_build", "jupyter_execute"]
nitpicky = True
smartquotes = False  # It would join the two hyphens of flags.
# Other projects' objects: their inventories would have to be fetched from the network.
nitpick_ignore_regex = [
    (r"py:.*", rf"({name})(\..*)?")
    for name in (
        *("jax", "jaxlib", "numpy", "np", "flax", "nn", "optax", "orbax", "grain", "absl", "av"),
        *("PIL", "collections", "abc", "pathlib", "typing", "types", "dataclasses", "enum", "io"),
        *("os", "safetensors", "functools", "ml_collections", "concurrent", "contextlib"),
        *("Dtype", "optional"),
        r"flaxnets\.inference\.runtime\.(columns|functions|preprocessing|words)",
    )
]
# Interfaces between the modules of one package, which no reader of the reference calls.
nitpick_ignore = [
    ("py:class", "data.datasets.array_record_folder.F"),
    ("py:class", "data.datasets.listed_videos.ListedVideo"),
    ("py:class", "data.batches.FrameExample"),
    ("py:class", "flaxnets.decoders.cells.InnerCell"),
    ("py:class", "flaxnets.decoders.decoder.DecoderWeights"),
    ("py:class", "flaxnets.heads.classifier.StreamLogits"),
    ("py:class", "flaxnets.inference.export.HasTorchNames"),
    ("py:class", "flaxnets.recurrent.flax_cells.Flags"),
    ("py:class", "flaxnets.recurrent.matmul.ScanWeights"),
    ("py:class", "flaxnets.recurrent.scan.ParallelScan"),
    ("py:class", "experiments.sequences.series.SeriesConfig"),
    ("py:class", "data.captions.scores.Key"),
    ("py:class", "data.text_lines.rendering.LineStyle"),
    ("py:class", "experiments.transcription.text_lines.LinesConfig"),
    ("py:class", "experiments.transcription.speech.SpeechConfig"),
    ("py:class", "experiments.transcription.speech.SpeechAugmentationConfig"),
    ("py:class", "flaxnets.models.deep_speech2.DeepSpeech2Config"),
    ("py:class", "data.audio.generated_sounds.GeneratedSounds"),
    ("py:class", "experiments.features.frozen_features.ProjectedCRNNConfig"),
    ("py:exc", "EvaluationStopped"),
]

# -- Notebooks: executed once and then kept until a cell of theirs changes ------------------------
nb_execution_mode = os.environ.get("DOCS_EXECUTION", "cache")
if nb_execution_mode == "off":  # DOCS_EXECUTION=off: the pages alone, for a quick look.
    suppress_warnings = ["myst-nb.lexer"]
nb_execution_cache_path = str(ROOT / "docs" / "_build" / ".jupyter_cache")
nb_execution_timeout = 900  # Of one cell, on a machine that does other work as well.
if nb_execution_mode != "off":
    # The database of the cache is made here, in the process that later forks: two processes that
    # find it missing would both make its tables, and the second would fail.
    get_cache(nb_execution_cache_path).db.dispose()
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_number_source_lines = False
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

# -- Reference ------------------------------------------------------------------------------------
autodoc_default_options = {"special-members": "__call__", "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 72
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_use_rtype = False

# -- Pages ----------------------------------------------------------------------------------------
html_theme = "sphinx_book_theme"
html_title = "flaxnets"
html_static_path = ["_static"]
html_css_files = ["flaxnets.css"]
html_favicon = "_static/favicon.svg"
html_theme_options = {
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    # The sidebar has the search field; above the page it would stand a second time.
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "navbar_persistent": [],
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_copy_source = False
html_show_sourcelink = False
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# MathJax is copied into the pages, so that they show equations without a network.
MATHJAX = "tex-svg.js"
mathjax_path = f"mathjax/{MATHJAX}"


def copy_mathjax(app: Any, error: Exception | None) -> None:
    """Copies MathJax's one file beside the other static files."""
    if error is None and app.builder.format == "html":
        files = metadata.files("sphinx-mathjax-offline") or []
        source = next(file for file in files if file.name == MATHJAX).locate()
        target = Path(app.outdir) / "_static" / "mathjax" / MATHJAX
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(source), target)


def spread_tutorials(app: Any, env: Any, docnames: list[str]) -> None:
    """Spreads the tutorials over the pages: each process reads a part of them, in this order."""
    tutorials = [name for name in docnames if name.startswith("tutorials/")]
    others = [name for name in docnames if not name.startswith("tutorials/")]
    groups = [group for group in (tutorials, others) if group]
    places = {name: i / len(group) for group in groups for i, name in enumerate(group)}
    docnames.sort(key=lambda name: places[name])


def setup(app: Any) -> None:
    """Registers what this file adds to Sphinx."""
    app.connect("env-before-read-docs", spread_tutorials)
    app.connect("build-finished", copy_mathjax)
