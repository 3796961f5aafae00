"""The examples in docstrings run, and every public part has one."""

import doctest
import importlib
import pkgutil

import pytest

import flaxnets
from flaxnets.decoders.config import DECODERS
from flaxnets.encoders.config import ENCODERS
from flaxnets.heads.classifier import ClipClassifier, StepClassifier
from flaxnets.heads.pooling import AttentionPooling
from flaxnets.recurrent.config import CELLS

MODULES = [
    module.name
    for module in pkgutil.walk_packages(flaxnets.__path__, "flaxnets.")
    if not module.ispkg
]
PARTS = {
    **ENCODERS,
    **CELLS,
    **DECODERS,
    "step": StepClassifier,
    "clip": ClipClassifier,
    "attention": AttentionPooling,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    result = doctest.testmod(
        importlib.import_module(name),
        optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
    )
    assert result.failed == 0


@pytest.mark.parametrize("name", PARTS)
def test_every_part_has_an_example(name: str) -> None:
    part = PARTS[name]
    while hasattr(part, "func"):  # A partial names the class that it makes.
        part = part.func
    assert doctest.DocTestFinder(recurse=False).find(part)[0].examples, f"{part} has no example"
