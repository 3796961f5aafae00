r"""Deep Speech 2 (Amodei et al., 1512.02595): convolutions, recurrent layers with BatchNorm, CTC.

    python -m launch.train --config=experiments/deep_speech2.py --workdir=runs/speech \
        --config.data.root=my_recordings
    python -m launch.evaluate --workdir=runs/speech --split=test
    python -m launch.read --workdir=runs/speech recording.wav

``my_recordings`` holds recordings (flac, wav, ogg, mp3, …) with ``NAME.txt`` beside each, or a
``--config.data.list`` names files and texts (``data/datasets/audio_folder.py``). Recordings of
another rate than ``data.sample_rate`` are resampled, and the log says so.

Spoken digits: strings of 3 to 7 digits, joined from recordings of single digits with gaps, level
and noise drawn (``data/audio/digit_strings.py``); the table has the columns ``file``, ``digit`` and
``speaker``:

    python -m launch.train --config=experiments/deep_speech2.py:spoken_digits \
        --workdir=runs/digits --config.data.list=…/spoken_digits/train.csv
    python -m launch.evaluate --workdir=runs/digits --split=test

A tenth of the recordings of each digit and speaker validates and another is tested; no string joins
recordings of two splits. Measured: 1.9 % of 1,502 digits of the test wrong after 1,200 steps
(``experiments/results/spoken_digits.md``). For the error on a new voice, which all other speakers'
recordings train:

    python -m launch.train --config=experiments/deep_speech2.py:spoken_digits \
        --workdir=runs/digits_george --config.data.list=…/spoken_digits/train.csv \
        --config.data.held_out_speaker=george
    python -m launch.evaluate --workdir=runs/digits_george --split=test

Network (``flaxnets/models/deep_speech2.py``): up to three convolutions over time and frequency,
each with BatchNorm and the clipped ReLU min(max(x, 0), 20) (section 3.5); recurrent layers whose
input projections are normalised over all steps of the batch, in both directions, which are summed
(sections 3.1 and 3.2); a softmax for each step. The streaming network of section 3.7 scans forwards
alone and has a lookahead convolution: ``--config.model.bidirectional=False`` and
``--config.model.lookahead=20``. SortaGrad (section 3.3): ``--config.data.short_first``.

The paper's figures (ICML 2016; 2 convolutions and 7 recurrent layers of 100 million parameters,
11,940 hours of English, a language model): word error 5.15 % on LibriSpeech test-clean, 12.73 % on
test-other, 3.10 % on WSJ eval'92. No run of this repository was compared with them.

Variants:
  - ``small``, or none, or ``folder``: recordings of one's own, a network for one machine.
  - ``full``: the paper's "3-layer 2D" convolutions and 7 bidirectional simple recurrent layers.
  - ``spoken_digits``: strings of digits at 8 kHz, a yet smaller network.
  - ``smoke``: a few steps on generated sounds of telephone keys (``data/audio/dial_tones.py``).

Deviations from the paper: log-mel spectrograms, 80 bands, each normalised over the recording,
instead of 161 bins of a spectrogram of power-normalised sound, under the same kernels; SpecAugment,
changes of speed and pitch and noise on the spectrogram instead of noise added to 40 % of the
recordings; no language model unless a beam search is asked for; 1,760 units in ``full``, for which
the paper gives only numbers of parameters, and a linear decay of the rate instead of a step after
each epoch. The other variants have AdamW with a cosine schedule, GRUs, averaged parameters and
short kernels, which suit a few hours of speech and a CPU.
"""

import dataclasses

import flax.linen as nn

from experiments.transcription.speech import DIGITS, TONES, SpeechExperiment
from flaxnets.configuration import nearest, runtime
from flaxnets.models.deep_speech2 import (
    ConvolutionsConfig,
    DeepSpeech2Config,
    make_deep_speech2,
)
from flaxnets.training.config import OptimizerConfig

VARIANTS = ("folder", "small", "full", "spoken_digits", "smoke")


def _small_network() -> DeepSpeech2Config:
    return DeepSpeech2Config(
        ConvolutionsConfig((32, 32), (11, 5), (5, 5), (2, 2), (2, 2)),
        cell="gru",
        features=384,
        num_layers=4,
        dropout_rate=0.2,
    )


@dataclasses.dataclass
class DeepSpeech2Experiment(SpeechExperiment):
    """Hyper-parameters of Deep Speech 2."""

    name: str = "Deep Speech 2"
    best_metric: str = "word_error_rate"
    batch_size: int = 32
    num_steps: int = 20_000
    eval_every: int = 1_000
    checkpoint_every: int = runtime(500)
    patience: int = 8
    ema_decay: float = 0.999
    model: DeepSpeech2Config = dataclasses.field(default_factory=_small_network)
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            name="adamw",
            learning_rate=1e-3,
            schedule="cosine",
            warmup_steps=500,
            weight_decay=1e-2,
            clip_norm=5.0,
        )
    )

    def validate(self) -> None:
        """Checks the values as ``SpeechExperiment.validate``, and those of the network."""
        super().validate()
        make_deep_speech2(self.model, 2)

    @property
    def stride(self) -> int:
        """Frames for each step of the network."""
        return make_deep_speech2(self.model, 2).stride

    def make_model(self) -> nn.Module:
        """Returns the network, whose classes are the blank and the characters."""
        return make_deep_speech2(self.model, len(self.alphabet) + 1)

    def describe_network(self) -> list[str]:
        """Returns lines about convolutions and recurrent layers."""
        model = self.model
        both = ", both directions" if model.bidirectional else ""
        ahead = f", {model.lookahead} steps of lookahead" if model.lookahead else ""
        return [
            f"convolutions  {len(model.convolutions.features)}, a step for {self.stride} frames",
            f"recurrent     {model.num_layers} × {model.cell} of {model.features} units{both}"
            f"{ahead}",
        ]


def get_config(variant: str | None = None) -> DeepSpeech2Experiment:
    """Returns the configuration of a variant; None: ``small``.

    Raises:
      ValueError: an unknown variant.
    """
    variant = variant or "small"
    if variant not in VARIANTS:
        raise ValueError(f"deep_speech2:{variant}: no such variant{nearest(variant, VARIANTS)}")
    config = DeepSpeech2Experiment()
    if variant == "full":
        config.model = DeepSpeech2Config()
        config.data.short_first, config.data.batch_width = True, 512 * 700
        config.batch_size, config.ema_decay = 512, 0.0
        config.optimizer = OptimizerConfig(
            name="sgd", learning_rate=5e-4, schedule="linear", momentum=0.99, clip_norm=400.0
        )
    if variant in ("spoken_digits", "smoke"):
        data = config.data
        data.sample_rate, data.num_mels, data.high = 8_000, 40, 3_800.0
    if variant == "spoken_digits":
        data.dataset, data.num_examples, data.num_buckets = DIGITS, 20_000, 3
        data.batch_width = 32 * 300
        config.model.features, config.model.num_layers = 128, 2
        config.num_steps, config.eval_every, config.checkpoint_every = 1_200, 300, 300
        config.optimizer.learning_rate, config.optimizer.warmup_steps = 3e-3, 100
        config.ema_decay, config.patience = 0.99, 0
        change = config.augmentation
        # A digit may be 0.14 s short.
        change.time_mask_width, change.band_mask_width = 6, 6
        change.speed, change.pitch = 0.15, 2.0
    if variant == "smoke":
        data.dataset, data.num_examples, data.num_evaluated = TONES, 20, 6
        data.batch_width, data.num_buckets = 8 * 150, 1
        config.num_steps, config.eval_every, config.checkpoint_every = 6, 3, 3
        config.log_every, config.optimizer.warmup_steps, config.batch_size = 1, 0, 8
        config.model.convolutions = ConvolutionsConfig((4, 4), (5, 3), (5, 3), (2, 2), (2, 2))
        config.model.cell, config.model.features, config.model.num_layers = "elman", 8, 1
    return config
