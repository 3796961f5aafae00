"""Fine-tuning to other classes: shared ones keep their logits, new ones start anew."""

import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from data.text_lines.alphabet import Alphabet
from experiments.crnn_text_lines import get_config
from flaxnets.heads.classifier import StepClassifier
from flaxnets.training.finetune import match_classes, remap_classes
from flaxnets.training.workdir import ALPHABET

OLD, NEW = "abcd", "bdxyz"


def classifier(num_classes: int, seed: int, **options: Any) -> tuple[StepClassifier, Any]:
    """Returns a head, and variables as those of a network with it; no entry is zero."""
    head = StepClassifier(num_classes, **options)
    inputs = np.zeros((1, 2, 3), np.float32)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), inputs, train=False))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes["params"]
    )
    return head, {"params": {"classifier": params, "rest": {"kernel": np.ones(2)}}}


@pytest.mark.parametrize("options", [{}, {"hidden_features": 6}])
def test_logits_of_shared_characters_are_as_before(options: dict[str, int]) -> None:
    (old, saved), (new, initial) = classifier(5, 0, **options), classifier(6, 1, **options)
    sources = match_classes(["", *OLD], ["", *NEW])
    assert sources.tolist() == [0, 2, 4, -1, -1, -1]
    remapped = remap_classes(saved, initial, sources)["params"]
    inputs = np.random.default_rng(2).normal(size=(2, 3, 3)).astype(np.float32)
    before = old.apply({"params": saved["params"]["classifier"]}, inputs, train=False)
    after = new.apply({"params": remapped["classifier"]}, inputs, train=False)
    np.testing.assert_array_equal(np.asarray(after)[..., :3], np.asarray(before)[..., [0, 2, 4]])
    assert np.shape(after) == (2, 3, 6)
    for name in ("kernel", "bias"):
        np.testing.assert_array_equal(
            remapped["classifier"]["scores"][name][..., 3:],
            initial["params"]["classifier"]["scores"][name][..., 3:],
        )
    np.testing.assert_array_equal(remapped["rest"]["kernel"], saved["params"]["rest"]["kernel"])


def test_classes_that_do_not_fit_are_refused_and_other_heads_are_left() -> None:
    saved, initial = classifier(5, 0)[1], classifier(6, 1)[1]
    with pytest.raises(ValueError, match="expected an index below 5 for each of 6 classes"):
        remap_classes(saved, initial, np.array([0, 1, 2, 3, 4, 5]))
    with pytest.raises(ValueError, match="received 3 up to 2"):
        remap_classes(saved, initial, np.array([0, 1, 2]))
    other = {"params": {"head": {"kernel": np.ones(2)}}}
    assert remap_classes(other, initial, np.array([0])) == other


def test_a_reader_says_which_characters_it_keeps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there, here = get_config("synthetic"), get_config("synthetic")
    there._alphabet, here._alphabet = Alphabet(OLD), Alphabet(NEW)
    (tmp_path / ALPHABET).write_text(json.dumps(there.alphabet.to_json()))
    saved, initial = classifier(5, 0)[1], classifier(6, 1)[1]
    with caplog.at_level(logging.INFO):
        adapted = here.adapt_variables(saved, initial, tmp_path)
    assert "the blank and 2 characters keep their weights: 'b', 'd'" in caplog.text
    assert "3 characters are new: 'x', 'y', 'z'" in caplog.text
    assert "2 characters are dropped: 'a', 'c'" in caplog.text
    kernels = [
        np.asarray(variables["params"]["classifier"]["scores"]["kernel"])
        for variables in (adapted, saved)
    ]
    np.testing.assert_array_equal(kernels[0][:, :3], kernels[1][:, [0, 2, 4]])
    assert there.adapt_variables(saved, initial, tmp_path) is saved
    here.initialize_except = ("classifier",)
    assert here.adapt_variables(saved, initial, tmp_path) is saved
    # The run of another task has no alphabet.
    assert here.adapt_variables(saved, initial, tmp_path / "other") is saved
