"""BLEU, METEOR, ROUGE-L, CIDEr-D and SPICE of captions, by pycocoevalcap's scorers.

Papineni et al., 2002; Denkowski and Lavie, 2014; Lin, 2004; Vedantam et al., 2015,
arXiv:1411.5726; Anderson et al., 2016, arXiv:1607.08822. Papers report the numbers of these
scorers. METEOR and SPICE need Java.

Properties of pycocoevalcap to know: CIDEr's document frequencies are those of the given references,
so a caption's score depends on the other images (and is 0 for a single image); corpus BLEU is not
the mean of the images' BLEU; "CIDEr" is CIDEr-D.

Captions are composed (Unicode's NFC) before they are tokenised, and in scripts without spaces each
character is a token (``data.captions.vocabulary.separate_words``), as is usual for Chinese and as
the models' words are. Latin text is not changed otherwise.
"""

import json
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from data.captions import java_scorers
from data.captions.ptb_tokenizer import tokenize
from data.captions.vocabulary import separate_words
from data.files import write_atomically

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
WITHOUT_JAVA = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")

Key = TypeVar("Key", bound=Hashable)
Tokenizer = Literal["ours", "stanford"]
# Image number -> tokenised captions, the form that the scorers take.
_Captions = dict[int, list[str]]
_Scored = dict[str, tuple[float, Sequence[float]]]


@dataclass(frozen=True)
class CaptionScores(Generic[Key]):
    """Scores of candidate captions.

    Attributes:
        corpus: corpus score of each metric, in METRICS' order; in [0,1], CIDEr in [0,10].
        per_image: the images' scores of each metric.
        left_out: a sentence on the requested metrics that are missing and why; "" if none is.
    """

    corpus: dict[str, float]
    per_image: dict[str, dict[Key, float]]
    left_out: str = ""


class CaptionScorer(Generic[Key]):
    """Scorer of candidate captions against references that are tokenised once.

    Args:
        references: the captions of each image, at least one each, not all without words.
        tokenizer: "ours" (``data.captions.ptb_tokenizer``) or "stanford", which needs Java.

    Raises:
        ValueError: an unknown tokenizer, no references, or a caption that is not a string.
        ModuleNotFoundError: the extra ``captions`` is not installed.
        data.captions.java_scorers.ScorerError: Stanford's tokeniser does not run.
    """

    def __init__(
        self, references: Mapping[Key, Sequence[str]], *, tokenizer: Tokenizer = "ours"
    ) -> None:
        if tokenizer not in ("ours", "stanford"):
            raise ValueError(f"tokenizer: expected 'ours' or 'stanford', received {tokenizer!r}")
        if not references:
            raise ValueError("references: expected at least one image, received none")
        for key, captions in references.items():
            if isinstance(captions, str) or not captions:
                raise ValueError(
                    f"references[{key!r}]: expected a list of captions, received {captions!r}"
                )
            for caption in captions:
                _check_caption(f"references[{key!r}]", caption)
        self._pure = _pure_scorers()
        self._tokenizer = tokenizer
        self._keys = tuple(references)
        words = iter(self._tokenize([c for captions in references.values() for c in captions]))
        self._references: _Captions = {
            number: [next(words) for _ in captions]
            for number, captions in enumerate(references.values())
        }
        if not any(caption for captions in self._references.values() for caption in captions):
            raise ValueError("references: expected words, received punctuation only")

    def score(
        self, candidates: Mapping[Key, str], *, metrics: Collection[str] | None = None
    ) -> CaptionScores[Key]:
        """Scores one candidate for each image.

        Args:
            candidates: a caption for each key of the references. One without words scores 0.
            metrics: some of METRICS, such as WITHOUT_JAVA; None takes all of them.

        Returns:
            The scores; ``left_out`` names requested metrics that cannot be computed.

        Raises:
            ValueError: the keys are not those of the references, a candidate is not a string,
                or a metric is unknown.
        """
        requested = METRICS if metrics is None else tuple(metrics)
        if not requested or not set(requested) <= set(METRICS):
            raise ValueError(f"metrics: expected some of {', '.join(METRICS)}, received {metrics}")
        self._check_keys(candidates)
        words = self._tokenize([candidates[key] for key in self._keys])
        tokenised = {number: [caption] for number, caption in enumerate(words)}

        scored: _Scored = {}
        for computed, scorer in self._pure.items():
            if set(computed) & set(requested):
                scored |= scorer(self._references, tokenised)
        missing: dict[str, list[str]] = {}
        for name, java_scorer in (("METEOR", java_scorers.meteor), ("SPICE", java_scorers.spice)):
            if name in requested:
                try:
                    scored[name] = java_scorer(self._references, tokenised)
                except java_scorers.ScorerError as error:
                    missing.setdefault(str(error), []).append(name)
        names = [name for name in METRICS if name in scored and name in requested]
        return CaptionScores(
            {name: float(scored[name][0]) for name in names},
            {
                name: {
                    key: float(score)
                    for key, score in zip(self._keys, scored[name][1], strict=True)
                }
                for name in names
            },
            "; ".join(f"{' and '.join(gone)} left out: {why}" for why, gone in missing.items()),
        )

    def _tokenize(self, captions: Sequence[str]) -> list[str]:
        separated = [separate_words(caption) for caption in captions]
        if self._tokenizer == "stanford":
            return java_scorers.tokenize_all(separated)
        return [" ".join(tokenize(caption)) for caption in separated]

    def _check_keys(self, candidates: Mapping[Key, str]) -> None:
        lacking = [key for key in self._keys if key not in candidates]
        known = set(self._keys)
        unknown = [key for key in candidates if key not in known]
        if lacking or unknown:
            raise ValueError(
                "candidates: expected the keys of the references, received "
                + "; ".join(
                    f"{len(keys)} {what}: {', '.join(map(repr, keys[:5]))}"
                    for what, keys in (("missing", lacking), ("unknown", unknown))
                    if keys
                )
            )
        for key in self._keys:
            _check_caption(f"candidates[{key!r}]", candidates[key])


def _check_caption(name: str, caption: object) -> None:
    if not isinstance(caption, str):
        raise ValueError(f"{name}: expected a string, received {caption!r}")


def _pure_scorers() -> dict[tuple[str, ...], Callable[[_Captions, _Captions], _Scored]]:
    """Returns scorers of tokenised references and candidates by the metrics that they compute."""
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "the scorers of captions are not installed: pip install 'flaxnets[captions]'"
        ) from None

    def bleu(references: _Captions, candidates: _Captions) -> _Scored:
        # verbose=0 keeps it from printing.
        scores, images = Bleu(4).compute_score(references, candidates, verbose=0)
        return {f"BLEU-{n + 1}": (scores[n], images[n]) for n in range(4)}

    return {
        METRICS[:4]: bleu,
        ("ROUGE-L",): lambda *captions: {"ROUGE-L": Rouge().compute_score(*captions)},
        ("CIDEr",): lambda *captions: {"CIDEr": Cider().compute_score(*captions)},
    }


# COCO's result files, ``[{"image_id": 42, "caption": "a dog runs"}, …]``, as its evaluation server
# and pycocotools read them (https://cocodataset.org/#format-results).


def write_results(path: str | Path, captions: Mapping[int, str]) -> None:
    """Writes captions in the mapping's order, replacing an existing file atomically.

    Args:
        path: the JSON file, in an existing folder.
        captions: image id -> caption.

    Raises:
        ValueError: an id is not an integer, or a caption is not a string.
    """
    entries = []
    for image_id, caption in captions.items():
        if isinstance(image_id, bool) or not hasattr(image_id, "__index__"):
            raise ValueError(f"captions: expected an integer as image_id, received {image_id!r}")
        if not isinstance(caption, str):
            raise ValueError(f"captions[{image_id}]: expected a string, received {caption!r}")
        # int() converts NumPy's integers, which json cannot serialise.
        entries.append({"image_id": int(image_id), "caption": caption})
    text = json.dumps(entries)
    write_atomically(path, lambda unfinished: unfinished.write_text(text, encoding="utf-8"))
