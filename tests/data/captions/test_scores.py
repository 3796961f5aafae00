"""Scores of captions: against published numbers, with and without Java, and bad input."""

import json
import math
import os
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.captions import java_scorers
from data.captions.scores import (
    METRICS,
    WITHOUT_JAVA,
    CaptionScorer,
    CaptionScores,
    Tokenizer,
)

COCO = Path(__file__).parents[3].parent / "shared/data/coco"
needs_java = pytest.mark.skipif(java_scorers.find_java() is None, reason="java is missing")

needs_coco = pytest.mark.skipif(not COCO.is_dir(), reason="shared/data/coco is missing")

REFERENCES = {
    "dog": ["A dog runs on the beach.", "The dog is running.", "A brown dog near the water"],
    "cat": ["A cat sleeps on a sofa.", "A cat's lying on the couch!"],
    "bus": ["A red bus on a street.", "Bus No. 5 is parked; it's red"],
}
CANDIDATES = {
    "bus": "a red bus parked on the street",
    "cat": "a cat on a couch",
    "dog": "a dog running on the beach",
}


def score_captions(
    candidates: Mapping[Any, str],
    references: Mapping[Any, Sequence[str]],
    tokenizer: Tokenizer = "ours",
    **options: Any,
) -> CaptionScores:
    return CaptionScorer(references, tokenizer=tokenizer).score(candidates, **options)


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def fake_java(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Puts a Python script named ``java`` on PATH."""
    program = folder / "java"
    program.write_text(f"#!{sys.executable}\n{script}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_without_java_all_but_two_scores(no_java, capfd):
    scores = score_captions(CANDIDATES, REFERENCES)
    assert tuple(scores.corpus) == tuple(scores.per_image) == WITHOUT_JAVA
    assert scores.left_out == "METEOR and SPICE left out: there is no java on PATH"
    assert all(set(images) == set(REFERENCES) for images in scores.per_image.values())
    assert capfd.readouterr() == ("", "")


def test_scores_by_hand(no_java):
    """BLEU and ROUGE-L from their definitions."""
    references = {1: ["the cat is on the mat"], 2: ["a dog runs"]}
    scores = score_captions({1: "the the cat", 2: "a dog runs"}, references)
    # Unigrams: "the" twice and "cat" of 3, and 3 of 3; bigrams: "the cat" of 2, and 2 of 2.
    brevity = math.exp(1 - 9 / 6)
    assert scores.corpus["BLEU-1"] == pytest.approx(brevity)
    assert scores.corpus["BLEU-2"] == pytest.approx(brevity * math.sqrt(3 / 4))
    # The longest common subsequence of the first is "the cat", "the the" being as long.
    precision, recall = 2 / 3, 2 / 6
    rouge = (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)
    assert scores.per_image["ROUGE-L"][1] == pytest.approx(rouge)
    assert scores.corpus["ROUGE-L"] == pytest.approx((rouge + 1) / 2)


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        ("Mo\u0323\u0302t con cho\u0301 đang cha\u0323y", "một con chó đang chạy"),
        ("两只狗在跑。", "两只狗在跑"),
        ("两只 狗 在 跑", "两只狗在跑"),
        ("เด็กดื่มน้ำ", "เด็กดื่มน้ำ"),
        ("ਇੱਕ ਕੁੱਤਾ।", "ਇੱਕ ਕੁੱਤਾ"),
    ],
)
def test_captions_of_any_script_match_what_models_write(no_java, reference, candidate):
    scores = score_captions({1: candidate, 2: "a dog"}, {1: [reference], 2: ["A dog."]})
    assert scores.per_image["ROUGE-L"][1] == pytest.approx(1)
    assert scores.per_image["BLEU-1"][1] == pytest.approx(1)


def test_chinese_is_scored_by_characters(no_java):
    scores = score_captions({1: "两只猫在跑", 2: "a dog"}, {1: ["两只狗在跑。"], 2: ["A dog."]})
    assert scores.per_image["BLEU-1"][1] == pytest.approx(4 / 5)


def test_cider_from_its_definition(no_java):
    """CIDEr-D (Vedantam et al., 2015): TF-IDF vectors, clipped counts, a length penalty."""
    scores = score_captions(CANDIDATES, REFERENCES, metrics=["CIDEr"])
    tokens = {k: [_words(c) for c in captions] for k, captions in REFERENCES.items()}
    for key, candidate in CANDIDATES.items():
        expected = np.mean(
            [
                _similarity(candidate.split(), reference, n, tokens)
                for n in range(1, 5)
                for reference in tokens[key]
            ]
        )
        assert scores.per_image["CIDEr"][key] == pytest.approx(10 * expected)
    assert scores.corpus["CIDEr"] == pytest.approx(
        np.mean(list(scores.per_image["CIDEr"].values()))
    )


def _words(caption: str) -> list[str]:
    words = caption.lower().replace("'s", " 's").replace("no.", "no#")
    return "".join(c for c in words if c not in ".!;").replace("no#", "no.").split()


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _similarity(
    candidate: list[str], reference: list[str], n: int, corpus: dict[str, list[list[str]]]
) -> float:
    def vector(words: list[str]) -> dict[tuple[str, ...], float]:
        grams = _grams(words, n)
        weights = {}
        for gram in set(grams):
            images = sum(any(gram in _grams(c, n) for c in image) for image in corpus.values())
            weights[gram] = grams.count(gram) * math.log(len(corpus) / max(1, images))
        return weights

    a, b = vector(candidate), vector(reference)
    norms = math.hypot(*a.values()) * math.hypot(*b.values())
    clipped = sum(min(a[gram], b.get(gram, 0)) * b.get(gram, 0) for gram in a)
    # The length is counted in bigrams.
    penalty = math.exp(-((len(candidate) - len(reference)) ** 2) / (2 * 6**2))
    return penalty * clipped / norms if norms else 0.0


def test_a_perfect_candidate(no_java):
    scores = score_captions({k: c[0] for k, c in REFERENCES.items()}, REFERENCES)
    for name in ("BLEU-1", "BLEU-4", "ROUGE-L"):
        assert scores.corpus[name] == pytest.approx(1)


def test_candidates_without_words_score_nothing(no_java):
    for empty in ("", " . "):
        scores = score_captions({**CANDIDATES, "cat": empty}, REFERENCES)
        assert all(images["cat"] == pytest.approx(0) for images in scores.per_image.values())
        assert scores.per_image["CIDEr"]["dog"] > 0
    nothing = score_captions(dict.fromkeys(REFERENCES, ""), REFERENCES)
    assert nothing.corpus == pytest.approx(dict.fromkeys(WITHOUT_JAVA, 0))


def test_references_are_tokenised_once(no_java, monkeypatch):
    scorer = CaptionScorer(REFERENCES)
    first = scorer.score(CANDIDATES)
    assert first == score_captions(CANDIDATES, REFERENCES)
    seen: list[str] = []

    def tokenize(caption: str) -> list[str]:
        seen.append(caption)
        return caption.split()

    monkeypatch.setattr("data.captions.scores.tokenize", tokenize)
    assert scorer.score(CANDIDATES) == first
    assert sorted(seen) == sorted(CANDIDATES.values())


def test_only_the_metrics_asked_for(no_java):
    scores = score_captions(CANDIDATES, REFERENCES, metrics=["CIDEr", "BLEU-4"])
    assert list(scores.corpus) == ["BLEU-4", "CIDEr"]
    assert scores.left_out == ""
    scores = score_captions(CANDIDATES, REFERENCES, metrics=["SPICE"])
    assert scores.corpus == {}
    assert scores.left_out == "SPICE left out: there is no java on PATH"


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        (CANDIDATES, {}, "references: expected at least one image, received none"),
        (CANDIDATES, {**REFERENCES, "cat": []}, r"references\['cat'\]: expected a list .* \[\]"),
        (CANDIDATES, {**REFERENCES, "cat": "a cat"}, r"references\['cat'\]: expected a list"),
        (CANDIDATES, {**REFERENCES, "cat": [3]}, r"references\['cat'\]: expected a string.* 3"),
        (CANDIDATES, {key: ["."] for key in REFERENCES}, "expected words, received punctuation"),
        ({**CANDIDATES, "cat": None}, REFERENCES, r"candidates\['cat'\]: expected a string.* None"),
        ({"dog": "a"}, REFERENCES, "received 2 missing: 'cat', 'bus'"),
        ({**CANDIDATES, "cow": "a"}, REFERENCES, "received 1 unknown: 'cow'"),
    ],
)
def test_bad_captions(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        score_captions(candidates, references)


def test_bad_options():
    with pytest.raises(
        ValueError, match=r"metrics: expected some of BLEU-1, .*received \['BLEU'\]"
    ):
        score_captions(CANDIDATES, REFERENCES, metrics=["BLEU"])
    with pytest.raises(
        ValueError, match="tokenizer: expected 'ours' or 'stanford', received 'ptb'"
    ):
        score_captions(CANDIDATES, REFERENCES, tokenizer="ptb")


def test_stanfords_tokeniser_needs_java(no_java):
    with pytest.raises(java_scorers.ScorerError, match="there is no java on PATH"):
        score_captions(CANDIDATES, REFERENCES, tokenizer="stanford")


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'flaxnets\[captions\]'"):
        score_captions(CANDIDATES, REFERENCES)


@pytest.mark.subprocess
def test_java_that_fails_leaves_its_scores_out(monkeypatch, tmp_path):
    fake_java(monkeypatch, tmp_path, "import sys; sys.exit('no memory')")
    scores = score_captions(CANDIDATES, REFERENCES)
    assert tuple(scores.corpus) == WITHOUT_JAVA
    assert scores.left_out.startswith("METEOR left out: its process fails")
    with pytest.raises(java_scorers.ScorerError, match="java ended with status 1: no memory"):
        score_captions(CANDIDATES, REFERENCES, tokenizer="stanford")


@pytest.mark.subprocess
@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_java_ends_with_a_process_that_is_killed(monkeypatch, tmp_path):
    begun = tmp_path / "begun"
    text = "import os, pathlib, sys, time\n"
    text += f"pathlib.Path({str(begun)!r}).write_text(str(os.getpid())); time.sleep(60)"
    fake_java(monkeypatch, tmp_path, text)
    code = "from data.captions import java_scorers; java_scorers._run([])"
    parent = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 30
    while not (begun.exists() and begun.read_text()):
        assert time.monotonic() < end
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    state = Path(f"/proc/{begun.read_text()}/stat")
    while state.exists() and " Z " not in state.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.subprocess
def test_spice_reads_what_its_jar_writes(monkeypatch, tmp_path):
    """A script stands in for the jar, whose models are not available offline."""
    models = tmp_path / "spice/lib"
    models.mkdir(parents=True)
    (models / "stanford-corenlp-3.6.0-models.jar").touch()
    monkeypatch.setattr(java_scorers, "_package", lambda name: tmp_path / name)
    fake_java(
        monkeypatch,
        tmp_path,
        "import json, sys\n"
        "read, _, write = sys.argv[4:7]\n"
        "scored = [{'image_id': e['image_id'], 'scores': {'All': {'f': len(e['test']) / 100}}}\n"
        "          for e in reversed(json.load(open(read)))]\n"
        "json.dump(scored, open(write, 'w'))\n",
    )
    scores = score_captions(CANDIDATES, REFERENCES, metrics=["SPICE"])
    assert scores.per_image["SPICE"] == {k: len(c) / 100 for k, c in CANDIDATES.items()}
    assert scores.corpus["SPICE"] == pytest.approx(sum(map(len, CANDIDATES.values())) / 300)
    fake_java(monkeypatch, tmp_path, "")
    scores = score_captions(CANDIDATES, REFERENCES, metrics=["SPICE"])
    assert scores.corpus == {}
    assert scores.left_out.startswith("SPICE left out: its results cannot be read")


@needs_java
def test_line_breaks_do_not_shift_the_captions():
    captions = ["a\rdog", "a\u2028cat\x85", "", "two\n\nbuses", "x"]
    assert java_scorers.tokenize_all(captions) == ["a dog", "a cat", "", "two buses", "x"]


def published() -> tuple[dict[int, str], dict[int, list[str]], dict[str, float]]:
    """Returns 126 captions, the references of their images, and pycocoevalcap's scores."""
    annotations = json.loads((COCO / "annotations/captions_val2017.json").read_text())
    results = json.loads((COCO / "fakecap_in_val2017_126.json").read_text())
    candidates = {result["image_id"]: result["caption"] for result in results}
    references: dict[int, list[str]] = {key: [] for key in candidates}
    for annotation in annotations["annotations"]:
        if annotation["image_id"] in references:
            references[annotation["image_id"]].append(annotation["caption"])
    scores = [0.585477, 0.404738, 0.282507, 0.198265, 0.205084, 0.407980, 0.627722]
    return candidates, references, dict(zip(METRICS, scores, strict=False))


@needs_coco
def test_published_scores_without_java(no_java):
    candidates, references, expected = published()
    scores = score_captions(candidates, references)
    assert scores.corpus == pytest.approx({n: expected[n] for n in WITHOUT_JAVA}, abs=1e-6)


@needs_coco
@needs_java
def test_published_scores_with_stanfords_tokeniser():
    candidates, references, _ = published()
    stanford = score_captions(candidates, references, tokenizer="stanford", metrics=WITHOUT_JAVA)
    assert stanford == score_captions(candidates, references, metrics=WITHOUT_JAVA)


@pytest.mark.slow
@needs_coco
@needs_java
def test_published_scores_with_meteor(capfd):
    candidates, references, expected = published()
    scores = score_captions(candidates, references, metrics=METRICS[:-1])
    assert scores.left_out == ""
    assert scores.corpus == pytest.approx(expected, abs=1e-6)
    assert capfd.readouterr() == ("", "")
