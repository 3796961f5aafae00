r"""Characters of a text, predicted one after another (A. Karpathy, char-rnn, 2015).

    python -m launch.train --config=experiments/char_rnn.py --workdir=runs/characters \
        --config.data.root=input.txt
    python -m launch.sample --workdir=runs/characters --prompt="ROMEO:" --length=500

``input.txt`` is any text in UTF-8; with tiny Shakespeare (1,115,394 characters, 65 different; the
first 90 % train, the last 10 % validate) the published losses of the validation, in nats a
character, are 1.4697 of nanoGPT's transformer (its repository) and 1.548 of a network of minGRUs.

The network: an embedding, three layers of LSTMs of 512 units with dropout between them, a linear
layer; the state goes on from window to window, and gradients end after ``data.window`` characters.
Another cell: ``--config.model.recurrent.cell=gru``; convolutions below it:
``--config.model.encoder.name=tcn``.

Deviations from char-rnn: an embedding instead of one-hot inputs, AdamW with a cosine schedule
instead of RMSprop with a decay of 0.97 from epoch 10 on, 100 steps for 50.

Variants:
  - none: the network above.
  - ``small``: one layer of 256 units, for an hour on two cores.
  - ``smoke``: a small network on the embedded captions, a few seconds.
"""

import dataclasses

from experiments.sequences.text import LanguageModelConfig, TextConfig
from flaxnets.configuration import nearest, runtime
from flaxnets.heads.config import HeadConfig
from flaxnets.models.sequence_model import SequenceModelConfig
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.training.config import OptimizerConfig

VARIANTS = ("small", "smoke")


@dataclasses.dataclass
class CharRNNConfig(LanguageModelConfig):
    """Hyper-parameters of a language model of characters."""

    name: str = "char-rnn"
    batch_size: int = 64
    num_steps: int = 10_000
    eval_every: int = 250
    patience: int = 6
    checkpoint_every: int = runtime(250)
    model: SequenceModelConfig = dataclasses.field(
        default_factory=lambda: SequenceModelConfig(
            recurrent=RecurrentConfig("lstm", features=512, num_layers=3, dropout_rate=0.3),
            head=HeadConfig(dropout_rate=0.3),
            embedding_features=128,
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            name="adamw",
            learning_rate=2e-3,
            schedule="cosine",
            warmup_steps=100,
            weight_decay=1e-2,
            clip_norm=1.0,
        )
    )


def get_config(variant: str | None = None) -> CharRNNConfig:
    """Returns the configuration of a variant.

    Raises:
      ValueError: no such variant.
    """
    config = CharRNNConfig()
    if variant in (None, "small"):
        if variant:
            config.model.recurrent = RecurrentConfig("lstm", features=256)
            config.model.head = HeadConfig(dropout_rate=0.2)
            config.num_steps = 4_000
        return config
    if variant == "smoke":
        config.batch_size, config.num_steps, config.eval_every = 8, 4, 2
        config.data = TextConfig("embedded", window=16, num_captions=8)
        config.model.recurrent = RecurrentConfig("lstm", features=16)
        config.model.embedding_features = 8
        config.optimizer.warmup_steps = 1
        return config
    raise ValueError(f"char_rnn:{variant}: no such variant{nearest(variant, VARIANTS)}")
