"""README and CONTRIBUTING: length, commands, figures, links, and the files that they name."""

import re
import shlex
from pathlib import Path

import pytest

from flaxnets.decoders.config import make_decoder
from flaxnets.models.config import CRNNConfig, make_crnn
from flaxnets.models.forecaster import ForecasterConfig, make_forecaster
from flaxnets.models.sequence_model import SequenceModelConfig, make_sequence_model
from tests.experiments import grid

# ml_collections loads the file of an experiment by a deprecated function.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for document in ("README.md", "CONTRIBUTING.md")
    for language, block in re.findall(
        r"^```(\w*)\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S
    )
    if not language
    for line in block.replace("\\\n", " ").splitlines()
    if "python -m launch." in line
]


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_programs_exist() -> None:
    assert len(COMMANDS) > 10
    for command in COMMANDS:
        program = command[command.index("-m") + 1]
        assert (ROOT / f"{program.replace('.', '/')}.py").is_file(), program


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if "my_cells:" not in str(c)], ids=" ".join
)
def test_configurations_exist_and_make_a_model(command: list[str]) -> None:
    given = [flag for flag in command if flag.startswith("--config.")]
    specs = [flag for flag in command if flag.startswith("--config=")]
    if not specs:  # A program that reads a workdir.
        return
    config = grid.parse(specs[0].removeprefix("--config=experiments/"), *given)
    if isinstance(config.model, CRNNConfig):
        make_crnn(config.model, num_classes=3, fixed_length=True)
    elif isinstance(config.model, SequenceModelConfig):
        make_sequence_model(config.model, 3)
    elif isinstance(config.model, ForecasterConfig):
        make_forecaster(config.model, channels=1)
    else:
        make_decoder(config.model.decoder, vocabulary_size=10)


def test_figures_are_those_of_the_linked_pages() -> None:
    rows = re.findall(r"^\|.*\]\(experiments/results/\w+\.md\).*$", README, re.M)
    assert rows
    for row in rows:
        page = re.search(r"experiments/results/\w+\.md", row)
        assert page
        text = (ROOT / page[0]).read_text()
        figures = re.findall(r"\d+\.\d+", row)
        assert figures, row
        assert [figure for figure in figures if figure not in text] == []


@pytest.mark.parametrize("document", ["README.md", "experiments/results/README.md"])
def test_links_lead_to_files(document: str) -> None:
    path = ROOT / document
    targets = re.findall(r"\]\(([\w./-]+)", path.read_text())
    assert targets
    assert [target for target in targets if not (path.parent / target).exists()] == []


def test_files_from_clip_to_metric() -> None:
    steps = re.findall(r"^\d+\. `(.*?)`", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    assert 10 < len(steps) <= 20
    assert [step for step in steps if not (ROOT / step).is_file()] == []
