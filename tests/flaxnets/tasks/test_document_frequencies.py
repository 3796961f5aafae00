"""Files of document frequencies, and what cannot be counted."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from flaxnets.tasks.cider import DocumentFrequencies
from tests.flaxnets.corpora import EOS, pack, random_corpus


def test_saved_and_loaded(tmp_path: Path) -> None:
    for count_eos in (True, False):
        _, corpus = random_corpus(5, 30)
        frequencies = DocumentFrequencies.count(pack(corpus), count_eos=count_eos)
        path = tmp_path / "frequencies.npz"
        frequencies.save(path)
        loaded = DocumentFrequencies.load(path)
        assert jax.tree.structure(loaded) == jax.tree.structure(frequencies)
        jax.tree.map(np.testing.assert_array_equal, loaded, frequencies)
        assert [each.name for each in tmp_path.iterdir()] == ["frequencies.npz"]


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        DocumentFrequencies.load(tmp_path / "none.npz")
    whole = tmp_path / "whole.npz"
    DocumentFrequencies.count([[[4, 5, EOS]]]).save(whole)
    path = tmp_path / "bad.npz"
    np.savez(path, words=np.zeros(3))
    bare = tmp_path / "bare.npy"
    np.save(bare, np.zeros(3))
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:300])
    text = tmp_path / "text.npz"
    text.write_text("a dog")
    empty = tmp_path / "empty.npz"
    empty.write_bytes(b"")
    for wrong in (path, bare, cut, text, empty, tmp_path):
        with pytest.raises(ValueError, match="path: expected document frequencies of format 1"):
            DocumentFrequencies.load(wrong)


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ([], "references: expected at least one image, received none"),
        (np.zeros((3, 4), np.int32), r"references: expected integers \(C,M\) for each image"),
        (np.zeros((3, 4, 5)), r"received float64 of shape \(4, 5\) for image 0"),
        ([[[-1, 4]]], r"references: expected ids in \[0, 2\^31\), received -1 to 4"),
        ([[[2**31, 4]]], "references: expected ids in"),
    ],
)
def test_bad_references_to_count(references: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DocumentFrequencies.count(references)
