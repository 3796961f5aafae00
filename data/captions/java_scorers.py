"""Scorers of captions that need Java: Stanford's tokeniser, METEOR, SPICE.

The jars come with pycocoevalcap. Each function starts one Java process and ends it.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from data.captions.ptb_tokenizer import LINE_BREAKS, PUNCTUATION

# SPICE runs for minutes, which it must not do for a process that has been killed: on Linux, Java is
# killed with it (1: PR_SET_PDEATHSIG).
_END_WITH_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it.
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ScorerError(RuntimeError):
    """Failure of a Java scorer; the message gives the reason."""


def find_java() -> str | None:
    """Returns the path of the ``java`` program, or None if there is none."""
    return shutil.which("java")


def tokenize_all(captions: Sequence[str]) -> list[str]:
    """Returns captions tokenised by CoreNLP's PTBTokenizer, as pycocoevalcap runs it.

    Args:
        captions: the captions; the tokeniser reads them as the lines of one text.

    Returns:
        The tokens of each caption without pycocoevalcap's punctuation, joined by spaces.

    Raises:
        ScorerError: there is no Java, or the tokeniser fails.
    """
    jar = _package("tokenizer") / "stanford-corenlp-3.4.1.jar"
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "captions.txt"
        text.write_text("\n".join(LINE_BREAKS.sub(" ", caption) for caption in captions), "utf-8")
        tokenizer = "edu.stanford.nlp.process.PTBTokenizer"
        command = ["-cp", str(jar), tokenizer, "-preserveLines", "-lowerCase", str(text)]
        lines = _run(command).split("\n")
    if len(lines) < len(captions):
        raise ScorerError(f"the tokeniser gave {len(lines)} lines for {len(captions)} captions")
    return [
        " ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATION)
        for line in lines[: len(captions)]
    ]


def meteor(
    references: Mapping[int, list[str]], candidates: Mapping[int, list[str]]
) -> tuple[float, list[float]]:
    """Computes METEOR 1.5 (Denkowski and Lavie, 2014) with pycocoevalcap's scorer.

    Args:
        references: image number -> tokenised captions.
        candidates: image number -> a list of the one tokenised candidate.

    Returns:
        The corpus score and the images' scores in the references' order, in [0,1].

    Raises:
        ScorerError: there is no Java, or METEOR fails.
    """
    if find_java() is None:
        raise ScorerError("there is no java on PATH")
    from pycocoevalcap.meteor.meteor import Meteor

    try:
        scorer = Meteor()
    except OSError as error:
        raise ScorerError(f"java does not start: {error}") from error
    process = scorer.meteor_p
    try:
        score, scores = scorer.compute_score(references, candidates)
    except (OSError, ValueError) as error:
        raise ScorerError(f"its process fails: {error}") from error
    finally:
        # After a failed call the scorer's own clean-up waits for this lock forever, and it leaves
        # two pipes open.
        if scorer.lock.locked():
            scorer.lock.release()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                stream.close()
    return float(score), [float(score) for score in scores]


def spice(
    references: Mapping[int, list[str]], candidates: Mapping[int, list[str]]
) -> tuple[float, list[float]]:
    """Computes SPICE 1.0 (Anderson et al., 2016, arXiv:1607.08822) with pycocoevalcap's jar.

    pycocoevalcap's own scorer would download 380 MB unasked, write into the installed package and
    print; so the jar is called directly, with the scorer's arguments and without a cache.

    Args:
        references: image number -> tokenised captions.
        candidates: image number -> a list of the one tokenised candidate.

    Returns:
        The mean of the images' F-scores and these scores in the references' order, in [0,1].

    Raises:
        ScorerError: there is no Java, CoreNLP's models are missing, or SPICE fails.
    """
    folder = _package("spice")
    if find_java() is None:
        raise ScorerError("there is no java on PATH")
    if not (folder / "lib" / "stanford-corenlp-3.6.0-models.jar").is_file():
        raise ScorerError(
            "CoreNLP 3.6.0's models are missing: python -m "
            "pycocoevalcap.spice.get_stanford_models downloads them"
        )
    examples = [
        {"image_id": number, "test": candidates[number][0], "refs": captions}
        for number, captions in references.items()
    ]
    with tempfile.TemporaryDirectory() as scratch:
        captions, results = Path(scratch) / "captions.json", Path(scratch) / "scores.json"
        captions.write_text(json.dumps(examples), "utf-8")
        jar = ["-Xmx8G", "-jar", "spice-1.0.jar"]
        _run([*jar, str(captions), "-out", str(results), "-subset", "-silent"], folder)
        try:
            found = {
                result["image_id"]: float(result["scores"]["All"]["f"])
                for result in json.loads(results.read_text("utf-8"))
            }
            scores = [found[number] for number in references]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ScorerError(f"its results cannot be read: {error!r}") from error
    return sum(scores) / len(scores), scores


def _run(arguments: Sequence[str], folder: Path | None = None) -> str:
    """Runs Java and returns its standard output."""
    java = find_java()
    if java is None:
        raise ScorerError("there is no java on PATH")
    try:
        command = [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid()), java]
        done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, check=True)
    except OSError as error:
        raise ScorerError(f"java does not start: {error}") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ScorerError(
            f"java ended with status {error.returncode}: {said[0] if said else 'no message'}"
        ) from error
    return done.stdout.decode("utf-8", "replace")


def _package(name: str) -> Path:
    """Returns the folder of a subpackage of pycocoevalcap, which holds its jar."""
    try:
        spec = find_spec(f"pycocoevalcap.{name}")
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            "the scorers of captions are not installed: pip install 'flaxnets[captions]'"
        )
    return Path(spec.submodule_search_locations[0])
