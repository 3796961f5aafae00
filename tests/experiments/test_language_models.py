"""Language models: state carried through a resumption, perplexity, sampling, schedules."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.char_rnn import get_config as char_rnn
from experiments.penn_treebank import SIZES, WORDS
from experiments.penn_treebank import get_config as penn_treebank
from experiments.sequences.config import Problem
from experiments.sequences.text import LanguageModelConfig
from flaxnets.inference.token_sampling import encode_prompt, sample_tokens
from flaxnets.inference.trained_model import TrainedModel, read_predictions
from flaxnets.training.checkpoint import Checkpointer
from flaxnets.training.loop import train
from flaxnets.training.metric_writer import read_metrics
from flaxnets.training.optimizer import make_schedule
from flaxnets.training.parallel import DataParallel
from flaxnets.training.workdir import Workdir


def run(path: Path, config: LanguageModelConfig) -> None:
    with Workdir(path) as workdir:
        workdir.claim("experiments/char_rnn.py:smoke", config)
        train(config, workdir, strategy=DataParallel(jax.devices()[:1]), show_progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the workdir of four steps of ``char_rnn.py:smoke``."""
    path = tmp_path_factory.mktemp("characters")
    run(path, char_rnn("smoke"))
    return path


@pytest.mark.slow
def test_a_run_that_resumes_in_a_stream_is_equal_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(trained, path)
    shutil.rmtree(path / "checkpoints" / "4")
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 2]
    (path / "metrics.jsonl").write_text("".join(kept))
    run(path, char_rnn("smoke"))
    losses = [
        [(r["step"], r["split"], r["loss"]) for r in read_metrics(folder)]
        for folder in (trained, path)
    ]
    assert losses[0] == losses[1]
    states = []
    for folder in (trained, path):
        checkpointer = Checkpointer(folder / "checkpoints", read_only=True)
        states.append(checkpointer.restore_variables(4))
        checkpointer.close()
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert set(states[0]) == {"params"}, "the carry belongs to the training's rows"


def test_perplexity_is_that_of_all_predicted_characters(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = char_rnn("smoke")
    model = TrainedModel(config, Workdir(trained))
    metrics = model.evaluate("test")
    records = read_predictions(Workdir(trained).predictions("test"))
    steps = sum(record["steps"] for record in records)
    assert steps == config.source("test").num_predicted == metrics["examples"]
    nats = sum(record["nll"] for record in records) / steps
    assert metrics["loss"] == pytest.approx(nats)
    assert metrics["perplexity"] == pytest.approx(math.exp(nats))
    assert metrics["bits"] == pytest.approx(nats / math.log(2))


@pytest.mark.slow
def test_samples_are_drawn_from_the_network(trained: Path) -> None:
    config = char_rnn("smoke")
    model = TrainedModel(config, Workdir(trained))
    prompt = config.encode_text("a re")
    draws = [
        sample_tokens(model.model, model.variables, prompt, 6, num_samples=2, **options)
        for options in ({"seed": 1}, {"seed": 1}, {"seed": 1, "top_k": 1}, {"temperature": 0.0})
    ]
    for one, other in ((0, 1), (2, 3)):  # The same draw; and the most probable tokens.
        np.testing.assert_array_equal(draws[one][0], draws[other][0])
    # The score of a token is its log-probability given all tokens before it.
    tokens, scores = draws[0]
    row = np.concatenate([prompt, tokens[0]])
    logits: Any = model.model.apply(model.variables, row[None, :-1], train=False)
    every = np.asarray(jax.nn.log_softmax(logits[0]))[len(prompt) - 1 :]
    expected = np.take_along_axis(every, tokens[0][:, None], 1)[:, 0]
    np.testing.assert_allclose(scores[0], expected, rtol=1e-5)
    text = config.decode_text(row.tolist())
    assert text.startswith("a re")
    assert len(text) == len(row)
    with pytest.raises(ValueError, match=r"prompt: expected tokens of the vocabulary.*'ß'"):
        config.encode_text("Straße")
    with pytest.raises(ValueError, match="prompt: expected at least one token"):
        sample_tokens(model.model, model.variables, config.encode_text(""), 6)


@pytest.mark.subprocess
def test_predict_names_the_program_that_continues_texts(trained: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.predict", f"--workdir={trained}", __file__],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 1
    assert "received one of 'char-rnn'; launch.sample continues texts" in done.stderr


def test_words_and_characters_are_split_and_joined() -> None:
    config = penn_treebank("smoke")
    ids = config.encode_text("a red circle\na red")
    assert config.decode_text(ids.tolist()) == "a red circle\na red"


@pytest.mark.parametrize("variant", SIZES)
def test_rates_of_the_treebank_are_those_of_the_paper(variant: str) -> None:
    config, size = penn_treebank(variant), SIZES[variant]
    epoch = config.eval_every
    assert epoch == math.ceil(math.ceil((WORDS - 1) / 20) / size.window)
    schedule = make_schedule(config.optimizer, config.num_steps)
    # The mean over a window's steps in place of their sum: rates are window times as high.
    rates = [float(schedule(number * epoch)) / size.window for number in range(size.epochs)]
    expected = [
        size.decay ** max(number + 1 - size.flat_epochs, 0) for number in range(size.epochs)
    ]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_initial_parameters_are_uniform() -> None:
    config = penn_treebank("smoke")
    variables = {"params": {"a": np.zeros((50, 50), np.float32), "b": np.zeros(500, np.float32)}}
    for leaf in jax.tree.leaves(config.initial_variables(variables)["params"]):
        assert -0.1 <= leaf.min() < -0.09
        assert 0.09 < leaf.max() <= 0.1


def test_a_text_may_have_any_name(tmp_path: Path) -> None:
    text = tmp_path / "book.md"
    text.write_text("one two\n" * 100)
    config = char_rnn()
    config.data.root = str(text)
    assert len(config.texts.texts["train"]) == 720
    config = char_rnn()
    config.data.root = str(tmp_path / "other.txt")
    with pytest.raises(FileNotFoundError, match=r"other\.txt: expected a text file or a folder"):
        config.problem  # noqa: B018


def test_a_prompt_is_a_new_line_or_a_blank_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    config = char_rnn()
    for text, expected in (("a\nb ", "\n"), ("a b", " ")):
        config._problem = Problem("stream", len(text), len(text), tokens=tuple(text))
        found = encode_prompt(config, None)
        assert config.decode_text(found.tolist()) == expected
    with pytest.raises(ValueError, match=r"prompt: .* 'Q' \(.*\) once; give another --prompt"):
        encode_prompt(config, "Q")


def test_texts_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    config = char_rnn()
    with pytest.raises(ValueError, match=r"data.root: expected a text file"):
        config.validate()
    text = tmp_path / "text.txt"
    text.write_text("abc " * 200 + "ä" * 20)
    config.data.root = str(text)
    config.batch_size = 4
    with pytest.raises(ValueError, match=r"'ä' .*20 times"):
        config.problem  # noqa: B018
    with pytest.raises(ValueError, match=r"or set --config\.data\.with_unknown=True"):
        config.problem  # noqa: B018
    config.data.with_unknown = True
    assert config.problem.num_tokens == 5
    with pytest.raises(ValueError, match="split: expected one of train, validation"):
        config.make_data("test")
