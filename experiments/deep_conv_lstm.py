r"""Activities from wearable sensors: DeepConvLSTM (Ordóñez and Roggen, Sensors 2016, 16(1):115).

    python -m launch.train --config=experiments/deep_conv_lstm.py:basic_motions \
        --workdir=runs/motions --config.data.root=BasicMotions.npz
    python -m launch.evaluate --workdir=runs/motions --split=test

``data.root`` holds sequences with one class each: a folder with ``NAME_TRAIN.ts`` and
``NAME_TEST.ts`` of the UEA and UCR archives, or an NPZ file (``data/datasets/sequence_npz.py``).
Validation is held out of the training sequences. A recording whose rows have labels is a table:

    python -m launch.train --config=experiments/deep_conv_lstm.py:csv --workdir=runs/activities \
        --config.data.list=sensors.csv --config.data.label=activity --config.data.group=recording

The network (section 2.2): four convolutions of 64 kernels of 5 steps over each channel alone, two
layers of LSTMs of 128 units, dropout of 0.5, a linear layer. Published, F1 weighted by classes, on
data that are not free to pass on: 0.915 of Opportunity's gestures, where the CNN alone has 0.883
(table 3).

Deviations: zeros stand before the first step, so that a convolution has an output at each step
(``ConvStack``); Adam for RMSProp; classes of whole sequences are read from the mean of the LSTM's
outputs, those of a window, as in the paper, from its last.

A variant is ``TASK`` or ``TASK,FAMILY``:
  - ``folder``, the default: ``data.root`` of one's own.
  - ``csv``: windows of 24 steps, half a window apart, as in section 4.2.
  - ``basic_motions``, ``japanese_vowels``: as ``folder``, with fewer and smaller batches. For the
    vowels three residual blocks of a TCN with 128 kernels over all channels together, one layer of
    LSTMs in both directions, mixup, dropout of inputs, and no dense layer of the CNN. They were
    selected with half of the training sequences as validation, drawn three times
    (``experiments/results/sequences.md``).
  - Families: ``deep_conv_lstm``, the default; ``cnn``, with one dense layer of 128 units in place
    of the LSTMs (the paper's baseline has two); ``rnn``, without the convolutions.
  - ``smoke``: a small network on generated sines, a few seconds.
"""

import dataclasses

from experiments.sequences.series import SeriesConfig, SeriesExperiment
from flaxnets.configuration import nearest
from flaxnets.encoders.sequence_config import SequenceEncoderConfig
from flaxnets.heads.config import HeadConfig
from flaxnets.models.sequence_model import SequenceModelConfig
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.training.config import OptimizerConfig

TASKS = ("folder", "csv", "basic_motions", "japanese_vowels")
FAMILIES = ("deep_conv_lstm", "cnn", "rnn")
SMALL = {"basic_motions": 100, "japanese_vowels": 1_500}
"""Steps of 16 sequences each, by task; 40 and 270 sequences train."""


@dataclasses.dataclass
class DeepConvLSTMConfig(SeriesExperiment):
    """Hyper-parameters of DeepConvLSTM."""

    name: str = "DeepConvLSTM"
    batch_size: int = 32
    num_steps: int = 1_000
    eval_every: int = 50
    data: SeriesConfig = dataclasses.field(
        default_factory=lambda: SeriesConfig(task="classify", validation_share=0.2)
    )
    model: SequenceModelConfig = dataclasses.field(
        default_factory=lambda: SequenceModelConfig(
            encoder=SequenceEncoderConfig(
                "conv", features=(64, 64, 64, 64), kernel_size=5, per_channel=True
            ),
            recurrent=RecurrentConfig("lstm", features=128, num_layers=2, dropout_rate=0.5),
            head=HeadConfig("mean", dropout_rate=0.5),
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(schedule="cosine", warmup_steps=50, clip_norm=1.0)
    )


def get_config(variant: str | None = None) -> DeepConvLSTMConfig:
    """Returns the configuration of ``TASK,FAMILY``.

    Raises:
      ValueError: no such variant.
    """
    config = DeepConvLSTMConfig()
    if variant == "smoke":
        config.batch_size, config.num_steps, config.eval_every = 8, 4, 2
        config.data = SeriesConfig("embedded", task="classify", window=12, stride=4)
        config.model.encoder.features = (8, 8)
        config.model.recurrent.features = 8
        config.optimizer.warmup_steps = 1
        return config
    task, _, family = (variant or "folder").partition(",")
    for word, known in ((task, (*TASKS, "smoke")), (family or FAMILIES[0], FAMILIES)):
        if word not in known:
            raise ValueError(f"deep_conv_lstm:{variant}: no such variant{nearest(word, known)}")
    if task == "csv":
        config.data.window, config.data.stride = 24, 12
        config.model.head.pool = "last"
    if task in SMALL:
        config.batch_size, config.num_steps, config.eval_every = 16, SMALL[task], 25
    if task == "japanese_vowels":
        config.eval_every = 100
        config.mixup, config.model.dropout_rate = 0.4, 0.1
        # 12 coefficients of one spectrum, not 12 sensors: they are convolved together.
        config.model.encoder = SequenceEncoderConfig(
            "tcn", features=(128, 128, 128), kernel_size=3, dropout_rate=0.3
        )
        recurrent = config.model.recurrent
        recurrent.num_layers, recurrent.bidirectional, recurrent.dropout_rate = 1, True, 0.0
    if family == "cnn":
        config.model.recurrent.cell = "none"
        config.model.head.hidden_features = 0 if task == "japanese_vowels" else 128
    if family == "rnn":
        config.model.encoder.name = "none"
    return config
