r"""CRNN for lines of text (Shi, Bai and Yao, 1507.05717): a CNN, two bidirectional LSTMs, and CTC.

    python -m launch.train --config=experiments/crnn_text_lines.py --workdir=runs/lines \
        --config.data.root=my_lines
    python -m launch.evaluate --workdir=runs/lines --split=test
    python -m launch.read --workdir=runs/lines line.png

A beam search with the character n-gram model of the training texts, which a run keeps as
``language_model.safetensors``, reads better than the most probable alignment (greedy). Its weight
and bonus are chosen on the validation split; ``launch.evaluate`` and ``launch.read`` take what was
chosen, unless flags say otherwise:

    python -m launch.tune_search --workdir=runs/lines --report=test
    python -m launch.evaluate --workdir=runs/lines --config.search.width=10 \
        --config.search.language_model_weight=0.3 --config.search.character_bonus=1
    python -m launch.read --workdir=runs/lines --beam_width=0 line.png  # greedy

To other characters: ``--config.initialize_from=runs/lines`` starts from another reader; shared
characters and the blank keep their rows of the classifier, new ones start anew, and the log says
which.

``my_lines`` holds images of single lines with ``NAME.gt.txt`` or ``NAME.txt`` beside each, or a
``--config.data.list`` names files and texts (``data/datasets/line_folder.py``).

Variants:
  - ``folder`` (default): lines of one's own, with the small network below.
  - ``fraktur``: the same for printed lines of 48 pixels, split at random; ``fraktur_by_book``: with
    whole books held out.
  - ``synthetic``: drawn lines, for which no data are needed.
  - ``paper``: the paper's network, 32 pixels high.
  - ``smoke``: a few steps on drawn lines.

Deviations of ``paper``: those of ``CRNNVGG``; AdamW instead of ADADELTA; batches by width instead
of lines stretched to 100 pixels. The other variants have a quarter of the channels and BatchNorm
after every convolution, which suits a few thousand lines and a CPU.
"""

import dataclasses

from experiments.transcription.text_lines import LinesConfig, TextLinesConfig
from flaxnets.configuration import nearest, runtime
from flaxnets.encoders.config import EncoderConfig
from flaxnets.heads.config import HeadConfig
from flaxnets.models.column_crnn import ColumnCRNNConfig
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.training.config import OptimizerConfig

VARIANTS = ("folder", "fraktur", "fraktur_by_book", "synthetic", "paper", "smoke")


def _small_network() -> ColumnCRNNConfig:
    return ColumnCRNNConfig(
        EncoderConfig("crnn_vgg_bn", features=(16, 32, 64, 128)),
        RecurrentConfig("lstm", features=128, num_layers=2, bidirectional=True, dropout_rate=0.3),
        HeadConfig(dropout_rate=0.3),
    )


@dataclasses.dataclass
class CRNNTextLinesConfig(TextLinesConfig):
    """Hyper-parameters of CRNN on lines of text."""

    name: str = "CRNN"
    batch_size: int = 32
    num_steps: int = 3_000
    eval_every: int = 250
    checkpoint_every: int = runtime(250)
    patience: int = 8
    ema_decay: float = 0.999
    data: LinesConfig = dataclasses.field(default_factory=LinesConfig)
    model: ColumnCRNNConfig = dataclasses.field(default_factory=_small_network)
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            name="adamw",
            learning_rate=2e-3,
            schedule="cosine",
            warmup_steps=200,
            weight_decay=1e-2,
            clip_norm=5.0,
        )
    )


def get_config(variant: str | None = None) -> CRNNTextLinesConfig:
    """Returns the configuration of a variant; None: ``folder``.

    Raises:
      ValueError: an unknown variant.
    """
    config = CRNNTextLinesConfig()
    if variant in (None, "folder"):
        return config
    if variant not in VARIANTS:
        raise ValueError(f"crnn_text_lines:{variant}: no such variant{nearest(variant, VARIANTS)}")
    if variant in ("fraktur", "fraktur_by_book"):
        config.data.test_share = 0.0
        if variant == "fraktur_by_book":
            config.data.group_pattern = "^(.*?)_"
    if variant == "paper":
        config.data.height = 32
        config.model = ColumnCRNNConfig(
            EncoderConfig("crnn_vgg"),
            # Table 1 does not name the linear layer that brings both directions to 256 units; the
            # authors' code (bgshih/crnn) has it, and the paper's 8.3 million parameters need it.
            RecurrentConfig(
                "lstm", features=256, num_layers=2, bidirectional=True, layer_input_features=256
            ),
        )
    if variant in ("synthetic", "smoke"):
        config.data.dataset, config.data.height = "synthetic", 32
        config.data.batch_width, config.data.augment = 32 * 160, False
        config.num_steps, config.eval_every, config.checkpoint_every = 1_500, 250, 250
        config.data.num_examples = 5_000
    if variant == "smoke":
        config.data.num_examples, config.data.batch_width, config.data.num_buckets = 20, 8 * 160, 2
        config.num_steps, config.eval_every, config.checkpoint_every = 6, 3, 3
        config.log_every, config.optimizer.warmup_steps, config.batch_size = 1, 0, 8
        config.model.encoder.features, config.model.recurrent.features = (4, 4, 8, 8), 8
    return config
