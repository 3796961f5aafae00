"""Recorder of the answers of Stanford's tokeniser, as pycocoevalcap runs it, to hard captions.

    python -m tests.data.captions.record_ptb

reads ``fixtures/ptb_captions.txt`` and writes ``fixtures/ptb_tokens.json``, so the tests need
neither Java nor pycocoevalcap. If both are installed, a test compares the recording with new
answers.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from data.captions import java_scorers

FIXTURES = Path(__file__).parent / "fixtures"


def record(captions: Sequence[str]) -> list[list[str]]:
    """Returns the tokens of each caption, each read before another that begins with "A "."""
    lines = [line for caption in captions for line in (caption, "A dog")]
    return [line.split(" ") if line else [] for line in java_scorers.tokenize_all(lines)[::2]]


def captions() -> list[str]:
    """Returns the recorded captions: the lines of the text, and each of their words alone."""
    lines = (FIXTURES / "ptb_captions.txt").read_text(encoding="utf-8").splitlines()
    return list(dict.fromkeys(lines + [word for line in lines for word in line.split(" ") if word]))


def main() -> None:
    """Writes the fixture."""
    recorded = dict(zip(captions(), record(captions()), strict=True))
    text = json.dumps(recorded, ensure_ascii=False, indent=0)
    (FIXTURES / "ptb_tokens.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
