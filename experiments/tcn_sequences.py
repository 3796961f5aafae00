r"""CNN, RNN or both on sequences: the study of Bai et al. (1803.01271) with its recurrent networks.

    python -m launch.train --config=experiments/tcn_sequences.py:jsb,lstm --workdir=runs/jsb_lstm \
        --config.data.root=MUSIC
    python -m launch.evaluate --workdir=runs/jsb_lstm --split=test --out=runs/jsb_lstm/test.json

A variant is ``TASK,FAMILY``; ``TASK`` alone takes the TCN, no variant is ``adding,tcn``.

Tasks, with the number of parameters and the published figures of LSTM, GRU, RNN and TCN (table 1;
errors, losses in nats a step, accuracies in %):

  - ``adding``: the sum of two marked numbers of 600; 70K; 0.164, 5.3e-5, 0.177, 5.8e-5.
  - ``copy``: ten symbols after a delay of 1,000 steps; 16K; 0.0204, 0.0197, 0.0202, 3.5e-5.
  - ``sequential_mnist``: digits pixel by pixel; 70K; 87.2, 96.2, 21.5, 99.0.
  - ``permuted_mnist``: the pixels in one random order; 70K; 85.7, 87.3, 25.3, 97.2.
  - ``jsb``: the next chord of chorales; 300K; 8.45, 8.43, 8.91, 8.10.
  - ``nottingham``: of folk tunes; 1M; 3.29, 3.46, 4.05, 3.07.
  - ``muse`` and ``piano``: of MuseData, 1M, and Piano-midi, 300K, which the study leaves out.
  - ``characters``: the next character of a text; 1M. The study has Penn Treebank; for tiny
    Shakespeare see ``char_rnn.py``.

``data.root`` is the folder of the digits (the published files, or ``train.npz`` and ``test.npz``),
the folder of the piano rolls (``jsb_chorales.npz``, ``nottingham.npz``, ...) or one such file, or a
text; ``adding`` and ``copy`` are generated, ``data.length`` sets their steps.

Families: ``tcn``, ``lstm``, ``gru``, ``elman`` (the study's RNN), ``mingru`` and ``lru`` (linear
recurrences, two or three layers with LayerNorm between them and residual connections, those of the
LRU with gated linear units), and ``conv_gru``, two or three blocks of the TCN below a GRU. Widths
are such that all families have the study's number of parameters, within 5 %; flags override all of
it, as ``--config.model.recurrent.features=64``.

Deviations from the study:
  - Its recurrent baselines were never published; widths follow from the number of parameters, and
    one setting of the optimizer serves all families of a task but for the learning rate.
  - Adam with gradients clipped at norm 1 and a cosine schedule; the study has RMSprop for copy
    memory, and learning rates that are divided when the validation stops improving.
  - Adding and copy memory: convolutions without weight normalisation, with which the TCN stays at
    the loss of a constant answer for about twice as many steps (adding, 200 steps, one seed).
  - MNIST: chrono initialization of the gates' biases (1804.11188);
    ``--config.model.recurrent.chrono_steps=0`` goes without, as other cells must. There and on copy
    memory the LRU begins near the unit circle (2303.06349, section 3.4).
  - Music: batches of sequences of similar length, filled by steps, where its code takes one
    sequence at a time; in JSB and Piano-midi dropout of the hidden states. Copy memory:
    symbols are embedded, where it feeds them as numbers.
  - MNIST: the last 10,000 training digits validate; its code trains on all 60,000.
  - The parameters with the best validation are kept. Figures are of the test split.

``smoke`` is the adding problem of 16 steps with a small TCN below a GRU, a few seconds.
"""

import dataclasses
import math
from typing import Any

from data.datasets.mnist import PixelSequences, make_permutation, read_mnist
from data.datasets.piano_rolls import read_piano_rolls
from data.series import AddingProblem, CopyMemory, NextSteps
from data.series.generated import CLASSES as SYMBOLS
from experiments.sequences.config import Problem, SequenceExperiment
from experiments.sequences.text import LanguageModelConfig
from flaxnets.configuration import check_at_least, nearest, path_field
from flaxnets.encoders.sequence_config import SequenceEncoderConfig
from flaxnets.heads.config import HeadConfig
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.training.config import OptimizerConfig

FAMILIES = ("tcn", "lstm", "gru", "elman", "mingru", "lru", "conv_gru")
MUSIC = {
    "jsb": "jsb_chorales",
    "nottingham": "nottingham",
    "muse": "muse_data",
    "piano": "piano_midi",
}
"""Names of the sets' files by task."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Networks of one number of parameters.

    Attributes:
      budget: number of parameters, the study's table 1.
      tcn: features of its blocks, and steps of a kernel.
      widths: of the recurrent layers, by family.
      conv: features of the blocks below the GRU of ``conv_gru``, and steps of a kernel.
      num_layers: recurrent layers of ``lstm``, ``gru`` and ``elman``.
      num_linear_layers: recurrent layers of ``mingru`` and ``lru``.
    """

    budget: int
    tcn: tuple[tuple[int, ...], int]
    widths: dict[str, int]
    conv: tuple[tuple[int, ...], int]
    num_layers: int = 1
    num_linear_layers: int = 3


def _widths(
    lstm: int, gru: int, elman: int, mingru: int, lru: int, conv_gru: int
) -> dict[str, int]:
    return dict(zip(FAMILIES[1:], (lstm, gru, elman, mingru, lru, conv_gru), strict=True))


_DIGITS = Sizes(70_000, ((25,) * 8, 7), _widths(130, 150, 260, 130, 61, 112), ((25,) * 3, 7))
_SMALL_MUSIC = Sizes(300_000, ((158,) * 2, 3), _widths(224, 262, 466, 242, 119, 194), ((128,), 3))
_LARGE_MUSIC = Sizes(
    1_000_000, ((146,) * 4, 6), _widths(448, 521, 915, 467, 226, 416), ((150,) * 2, 3)
)
SIZES = {
    "adding": Sizes(70_000, ((24,) * 8, 8), _widths(130, 150, 262, 130, 62, 116), ((24,) * 3, 7)),
    "copy": Sizes(16_000, ((11,) * 8, 8), _widths(58, 67, 117, 82, 36, 53), ((11,) * 3, 7), 1, 2),
    "sequential_mnist": _DIGITS,
    "permuted_mnist": _DIGITS,
    "jsb": _SMALL_MUSIC,
    "piano": _SMALL_MUSIC,
    "nottingham": _LARGE_MUSIC,
    "muse": _LARGE_MUSIC,
    "characters": Sizes(
        1_000_000, ((210,) * 4, 3), _widths(275, 318, 555, 475, 228, 451), ((128,) * 2, 3), 2
    ),
}
"""Networks by task."""


@dataclasses.dataclass
class GeneratedConfig:
    """Generated sequences."""

    length: int = 600
    """Steps of the adding problem; steps of the delay in copy memory."""
    num_train: int = 50_000
    """Training sequences."""
    num_eval: int = 1_000
    """Sequences of the validation and of the test split."""
    seed: int = 0
    """Of the sequences; ``seed`` without ``data`` is that of the training."""


@dataclasses.dataclass
class GeneratedStudy(SequenceExperiment):
    """Hyper-parameters of the adding problem and of copy memory."""

    task: str = "adding"
    """``adding`` or ``copy``."""
    data: GeneratedConfig = dataclasses.field(default_factory=GeneratedConfig)

    def validate(self) -> None:
        """Checks the values as ``SequenceExperiment.validate``, and those of the data."""
        super().validate()
        check_at_least("data", self.data, {"length": 1, "num_train": 1, "num_eval": 1, "seed": 0})
        if self.task not in ("adding", "copy"):
            raise ValueError(f"task: unknown {self.task!r}{nearest(self.task, ('adding', 'copy'))}")

    def read_problem(self) -> Problem:
        """Returns the sum as a regression, or the symbol of each step."""
        if self.task == "adding":
            return Problem("regression", 1)
        symbols = tuple(map(str, range(SYMBOLS)))
        return Problem("steps", SYMBOLS, SYMBOLS, tokens=symbols)

    def make_source(self, split: str) -> AddingProblem | CopyMemory:
        """Returns the sequences of a split."""
        make = AddingProblem if self.task == "adding" else CopyMemory
        count = self.data.num_train if split == "train" else self.data.num_eval
        return make(self.data.length, count, split=split, seed=self.data.seed)


@dataclasses.dataclass
class DigitsConfig:
    """Location of MNIST, and the order of the pixels."""

    root: str = path_field(runtime=True)
    """Folder with the published files, or with ``train.npz`` and ``test.npz``."""
    validation: int = 10_000
    """Last digits of the published training split, which validate."""
    permuted: bool = False
    """The pixels come in one random order; False: row by row."""
    permutation_seed: int = 0
    """Of that order."""


@dataclasses.dataclass
class DigitsStudy(SequenceExperiment):
    """Hyper-parameters of sequential and permuted MNIST."""

    best_metric: str = "accuracy"
    best_mode: str = "max"
    data: DigitsConfig = dataclasses.field(default_factory=DigitsConfig)

    def validate(self) -> None:
        """Checks the values as ``SequenceExperiment.validate``, and those of the data."""
        super().validate()
        check_at_least("data", self.data, {"validation": 1, "permutation_seed": 0})
        if not self.data.root:
            raise ValueError(
                "data.root: expected the folder of MNIST's files; give --config.data.root=FOLDER"
            )

    def read_problem(self) -> Problem:
        """Returns the classification of the ten digits, without reading them."""
        return Problem("classification", 10, class_names=PixelSequences.class_names)

    def make_source(self, split: str) -> PixelSequences:
        """Returns the digits of a split."""
        data = self.data
        digits = read_mnist(data.root, split, validation=data.validation)
        order = make_permutation(data.permutation_seed) if data.permuted else None
        return PixelSequences(digits, order)


@dataclasses.dataclass
class MusicConfig:
    """Location of a set of piano rolls."""

    root: str = path_field(runtime=True)
    """A file of piano rolls, or the folder with that of ``name``."""
    name: str = "jsb_chorales"
    """Name of the file in the folder, without ``.npz``; "": all files of the folder."""


@dataclasses.dataclass
class MusicStudy(SequenceExperiment):
    """Hyper-parameters of polyphonic music."""

    data: MusicConfig = dataclasses.field(default_factory=MusicConfig)

    def validate(self) -> None:
        """Checks the values as ``SequenceExperiment.validate``, and those of the data."""
        super().validate()
        if not self.data.root:
            raise ValueError(
                "data.root: expected a file of piano rolls, or a folder of them; give "
                "--config.data.root=PATH"
            )

    def read_problem(self) -> Problem:
        """Returns the prediction of the keys of the next step."""
        rolls = read_piano_rolls(self.data.root, "train", self.data.name)
        return Problem("steps", rolls.steps.shape[1], distribution="bernoulli")

    def make_source(self, split: str) -> NextSteps:
        """Returns the sequences of a split, whole, so that each step but the first is predicted."""
        rolls = read_piano_rolls(self.data.root, split, self.data.name)
        sequences = [roll for roll in rolls.sequences() if len(roll) > 1]
        return NextSteps(sequences, length=0 if self.batch_steps else None, name=rolls.name)


def set_family(config: SequenceExperiment, task: str, family: str) -> None:
    """Sets the encoder and the recurrent layer of a family at the number of parameters of a task.

    Args:
      config: whose ``model`` is changed.
      task: one of ``SIZES``.
      family: one of ``FAMILIES``.

    Raises:
      ValueError: no such family.
    """
    if family not in FAMILIES:
        raise ValueError(
            f"tcn_sequences:{task},{family}: no such family{nearest(family, FAMILIES)}"
        )
    sizes, model = SIZES[task], config.model
    rates = _DROPOUT.get(task, {"": 0.0})
    dropout = rates.get(family, rates[""])
    model.encoder, model.recurrent = SequenceEncoderConfig(), RecurrentConfig("none")
    if family in ("tcn", "conv_gru"):
        features, kernel_size = sizes.tcn if family == "tcn" else sizes.conv
        model.encoder = SequenceEncoderConfig(
            "tcn",
            features=features,
            kernel_size=kernel_size,
            weight_norm=task not in _PLAIN,
            dropout_rate=dropout,
        )
    if family != "tcn":
        linear = family in ("mingru", "lru")
        layers = sizes.num_linear_layers if linear else sizes.num_layers
        layers = 1 if family == "conv_gru" else layers
        model.recurrent = RecurrentConfig(
            "gru" if family == "conv_gru" else family,
            features=sizes.widths[family],
            num_layers=layers,
            residual=linear,
            normalize_layers=linear,
            glu=family == "lru",
            chrono_steps=_MEMORIES.get(task, 0) if family in _GATED else 0,
            dropout_rate=dropout if layers > 1 else 0.0,
            recurrent_dropout_rate=0.0 if linear else _RECURRENT_DROPOUT.get(task, 0.0),
        )
        if family == "lru" and task in _RINGS:
            model.recurrent.r_min, model.recurrent.max_phase = _RINGS[task]
    model.head.dropout_rate = 0.0 if family == "tcn" else dropout
    config.optimizer.learning_rate = _RATES[task].get(family, _RATES[task][""])


_DROPOUT: dict[str, dict[str, float]] = {
    "jsb": {"": 0.4, "tcn": 0.5},
    "piano": {"": 0.4, "tcn": 0.5},
    "nottingham": {"": 0.2},
    "muse": {"": 0.2},
    "characters": {"": 0.2},
}
"""Dropout after each convolution, between recurrent layers and on the inputs of the head, by task
and family; "": of the others; none of other tasks."""
_PLAIN = ("adding", "copy")
"""Tasks whose convolutions have no weight normalisation."""
_MEMORIES = {"sequential_mnist": 784, "permuted_mnist": 784}
"""Steps of ``model.recurrent.chrono_steps``, by task; none of other tasks."""
_GATED = ("lstm", "gru", "mingru", "conv_gru")
"""Families whose gates' biases chrono initialization sets."""
_RINGS = {
    "copy": (0.999, 2 * math.pi),
    "sequential_mnist": (0.99, math.pi / 10),
    "permuted_mnist": (0.99, math.pi / 10),
}
"""Smallest initial |λ| of LRUs and largest initial phase, by task; others: the cell's own."""
_RECURRENT_DROPOUT = {"jsb": 0.5, "piano": 0.5}
"""Dropout of the hidden states by task, of families with hidden-to-hidden kernels."""
_RATES: dict[str, dict[str, float]] = {
    "adding": {"": 2e-3, "tcn": 4e-3, "lstm": 2e-3, "elman": 3e-4},
    "copy": {"": 2e-3, "tcn": 2e-3, "elman": 3e-4},
    "sequential_mnist": {"": 2e-3, "elman": 3e-4},
    "permuted_mnist": {"": 2e-3, "elman": 3e-4},
    "jsb": {"": 5e-3, "tcn": 2e-3, "lstm": 1e-2, "elman": 1e-3, "lru": 2e-3},
    "piano": {"": 5e-3, "tcn": 2e-3, "lstm": 1e-2, "elman": 1e-3, "lru": 2e-3},
    "nottingham": {"": 2e-3, "lstm": 5e-3, "gru": 5e-4, "elman": 1e-3},
    "muse": {"": 2e-3, "lstm": 5e-3, "gru": 5e-4, "elman": 1e-3},
    "characters": {"": 2e-3, "elman": 1e-3},
}
"""Learning rates by task and family; "": of the others."""


def get_config(variant: str | None = None) -> SequenceExperiment:
    """Returns the configuration of ``TASK,FAMILY``.

    Raises:
      ValueError: no such variant.
    """
    if variant == "smoke":
        return _smoke()
    task, _, family = (variant or "adding").partition(",")
    if task not in SIZES:
        known = (*SIZES, "smoke")
        raise ValueError(f"tcn_sequences:{variant}: no such variant{nearest(task, known)}")
    config = _make(task)
    config.name = "tcn-sequences"
    config.optimizer = OptimizerConfig(schedule="cosine", warmup_steps=20, clip_norm=1.0)
    set_family(config, task, family or "tcn")
    return config


def _make(task: str) -> SequenceExperiment:
    """Returns the experiment of a task, without a network."""
    if task in ("adding", "copy"):
        delays = {"adding": (600, 50_000), "copy": (1_000, 10_000)}
        length, count = delays[task]
        generated = GeneratedStudy(task=task, data=GeneratedConfig(length, count))
        generated.batch_size, generated.eval_every = 32, 250
        generated.num_steps = 5_000
        generated.model.head = HeadConfig("last" if task == "adding" else "none")
        generated.model.embedding_features = 8
        return _checkpointed(generated)
    if task in ("sequential_mnist", "permuted_mnist"):
        digits = DigitsStudy(data=DigitsConfig(permuted=task == "permuted_mnist"))
        # 10 passes through 50,000 digits.
        digits.batch_size, digits.num_steps, digits.eval_every = 16, 31_250, 3_125
        digits.model.head = HeadConfig("last")
        return _checkpointed(digits)
    if task == "characters":
        text = LanguageModelConfig()
        text.batch_size, text.num_steps, text.eval_every, text.patience = 64, 4_000, 250, 6
        text.model.embedding_features = 64
        return _checkpointed(text)
    music = MusicStudy(data=MusicConfig(name=MUSIC[task]))
    music.batch_steps = 1_024
    small = SIZES[task].budget < 1_000_000
    music.num_steps, music.eval_every = (1_500, 50) if small else (8_000, 400)
    music.patience = 6
    return _checkpointed(music)


def _checkpointed(config: Any) -> Any:
    config.checkpoint_every = config.eval_every
    return config


def _smoke() -> SequenceExperiment:
    config = GeneratedStudy(data=GeneratedConfig(16, 64, 16))
    config.name = "tcn-sequences-smoke"
    config.batch_size, config.num_steps, config.eval_every = 8, 4, 2
    config.model.head = HeadConfig("last")
    config.model.encoder = SequenceEncoderConfig("tcn", features=(8, 8))
    config.model.recurrent = RecurrentConfig("gru", features=8)
    return config
