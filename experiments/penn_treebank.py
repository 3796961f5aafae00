r"""Words of the Penn Treebank by regularised LSTMs (Zaremba, Sutskever and Vinyals, 1409.2329).

    python -m launch.train --config=experiments/penn_treebank.py:medium --workdir=runs/ptb \
        --config.data.root=FOLDER
    python -m launch.evaluate --workdir=runs/ptb --split=test

``FOLDER`` has Mikolov's three files ``ptb.train.txt``, ``ptb.valid.txt``, ``ptb.test.txt``
(929,589, 73,760 and 82,430 words with the ends of the lines, 10,000 different ones), or those of
another corpus in words between blanks.

Test perplexity in table 1 of the paper: small, without regularisation, 114.5; medium 82.7; large
78.4; not run here, as the files are not at hand.

The network: an embedding, two layers of LSTMs, a softmax over the words; dropout on the inputs of
each layer and of the softmax, but not on what goes from step to step (section 3.2). The state goes
on from window to window of 20 rows; gradients end after 20 or 35 steps. SGD without momentum, whose
rate is divided after each epoch from a certain one on (section 4.1).

The paper sums the loss over the steps of a window; ours is their mean. The same updates follow from
a rate that is ``window`` times as high and a norm of the gradient that is clipped at 1/``window``
of theirs: rates 20 and 35 here are 1 there.

Deviations: the rows begin at the same words in each pass, and the last window of a strand, shorter
than the others, is not dropped; validation and test have 20 rows, not one.

Variants (layers, rate of dropout, steps, epochs, first division of the rate after):
  - ``small``: 200 units, 0, 20, 13 epochs, /2 after 4.
  - none, or ``medium``: 650 units, 0.5, 35, 39 epochs, /1.2 after 6.
  - ``large``: 1,500 units, 0.65, 35, 55 epochs, /1.15 after 14.
  - ``smoke``: a small network on the embedded captions, a few seconds.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.sequences.text import LanguageModelConfig, TextConfig
from flaxnets.configuration import nearest, runtime
from flaxnets.heads.config import HeadConfig
from flaxnets.models.sequence_model import SequenceModelConfig
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.training.config import OptimizerConfig

VARIANTS = ("small", "medium", "large", "smoke")
WORDS = 929_589
"""Words of the training file, from which the steps of an epoch follow."""


@dataclasses.dataclass(frozen=True)
class Size:
    """A row of section 4.1.

    Attributes:
      features: width of the embedding and of both layers.
      dropout_rate: on the inputs of each layer and of the softmax.
      window: steps of a window.
      scale: parameters are uniform in [−scale, scale] at the start.
      epochs: of the training.
      flat_epochs: after which the rate is first divided.
      decay: factor of the rate from epoch to epoch.
      clip_norm: greatest norm of the gradient of the summed loss.
    """

    features: int
    dropout_rate: float
    window: int
    scale: float
    epochs: int
    flat_epochs: int
    decay: float
    clip_norm: float


SIZES: Mapping[str, Size] = {
    "small": Size(200, 0.0, 20, 0.1, 13, 4, 1 / 2, 5.0),
    "medium": Size(650, 0.5, 35, 0.05, 39, 6, 1 / 1.2, 5.0),
    "large": Size(1_500, 0.65, 35, 0.04, 55, 14, 1 / 1.15, 10.0),
}


@dataclasses.dataclass
class PennTreebankConfig(LanguageModelConfig):
    """Hyper-parameters of a language model of words."""

    name: str = "LSTM language model"
    batch_size: int = 20
    initial_scale: float = 0.05
    """All parameters are drawn uniformly from [−initial_scale, initial_scale]."""
    checkpoint_every: int = runtime(500)

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the variables with parameters drawn anew, biases too."""
        leaves, structure = jax.tree.flatten(variables["params"])
        drawn = np.random.default_rng(self.seed)
        scale = self.initial_scale
        uniform = [drawn.uniform(-scale, scale, leaf.shape).astype(leaf.dtype) for leaf in leaves]
        return {**variables, "params": jax.tree.unflatten(structure, uniform)}

    def validate(self) -> None:
        """Checks the values as ``LanguageModelConfig.validate``, and the scale."""
        super().validate()
        if not self.initial_scale > 0:
            raise ValueError(f"initial_scale: expected more than 0, received {self.initial_scale}")


def get_config(variant: str | None = None) -> PennTreebankConfig:
    """Returns the configuration of a variant.

    Raises:
      ValueError: no such variant.
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f"penn_treebank:{variant}: no such variant{nearest(variant, VARIANTS)}")
    size = SIZES["small" if variant == "smoke" else variant or "medium"]
    config = PennTreebankConfig(initial_scale=size.scale)
    strand = -(-(WORDS - 1) // config.batch_size)
    epoch = -(-strand // size.window)  # Steps.
    config.data = TextConfig(unit="word", window=size.window)
    config.num_steps, config.eval_every = size.epochs * epoch, epoch
    config.model = SequenceModelConfig(
        recurrent=RecurrentConfig(
            "lstm", features=size.features, num_layers=2, dropout_rate=size.dropout_rate
        ),
        head=HeadConfig(dropout_rate=size.dropout_rate),
        embedding_features=size.features,
        dropout_rate=size.dropout_rate,
    )
    config.optimizer = OptimizerConfig(
        name="sgd",
        learning_rate=float(size.window),
        momentum=0.0,
        schedule="step",
        # The first division follows one period after the begin of the decay.
        decay_after=(size.flat_epochs - 1) * epoch,
        decay_every=epoch,
        decay_rate=size.decay,
        clip_norm=size.clip_norm / size.window,
    )
    if variant == "smoke":
        config.batch_size, config.num_steps, config.eval_every = 8, 4, 2
        config.data = TextConfig("embedded", unit="word", window=8, num_captions=16)
        config.model.recurrent = RecurrentConfig("lstm", features=16, num_layers=2)
        config.model.embedding_features = 8
    return config
