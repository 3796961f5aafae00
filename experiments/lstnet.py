r"""LSTNet: forecasts of many series with short and long patterns (Lai et al., 1703.07015).

    python -m launch.train --config=experiments/lstnet.py --workdir=runs/exchange \
        --config.data.list=exchange_rate.csv --config.data.horizons=3
    python -m launch.evaluate --workdir=runs/exchange --split=test

``exchange_rate.csv`` (laiguokun/multivariate-time-series-data) has the daily rates of 8 currencies,
1990 to 2016, without a header; the first 60 % train, the next 20 % validate, the last 20 % test.

Published on the exchange rates, RSE / CORR of the test part: horizon 3 .0226 / .9735, 6 .0280 /
.9658, 12 .0356 / .9511, 24 .0449 / .9354 (table 2). The last value carried forward has an RSE of
.0171 at horizon 3 (``rse_last``): on exchange rates it is hard to beat.

The network, with the sizes of the authors' code for this file (laiguokun/LSTNet, stock.sh): a
convolution of 6 days over all channels with 50 maps, ReLU and dropout; a GRU of 50 and, beside it,
a skip-recurrent GRU of 5 whose state reads the one 24 days before; a linear layer on the last state
of the first and the last 24 of the second; plus a linear autoregression of each channel on its last
24 days, with weights shared by the channels. Windows of 168 days; each channel is divided by its
greatest absolute value in the training part; L1 loss, since the script's ``--L1Loss False`` is
parsed as true.

Deviations: zeros stand before the first day of a window instead of a convolution without padding;
the scaling is that of the training part and not of the whole file; a loss in the scale of each
channel instead of its units; dropout on the inputs of the linear layer alone for both recurrent
layers; the GRU is that of ``flaxnets.recurrent``; 200 passes instead of 100, with early stopping:
after 100 the validation part was still getting better.

Variants:
  - none: the network above.
  - ``relative``: all forecasts relative to the last value, which helps where levels drift: RSE
    .0194 ± .0017 of the test part after 272 steps (``experiments/results/forecasting.md``).
  - ``smoke``: a small network on generated sines, a few seconds.
"""

import dataclasses
from functools import partial

from experiments.sequences.series import SeriesConfig, SeriesExperiment
from flaxnets.configuration import check_at_least, nearest, runtime
from flaxnets.encoders.sequence_config import SequenceEncoderConfig
from flaxnets.heads.config import HeadConfig
from flaxnets.models.sequence_model import SequenceModel, SequenceModelConfig
from flaxnets.recurrent.cells import GRUCell
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.recurrent.skip_recurrent import SkipRecurrent, WithSkip
from flaxnets.training.config import OptimizerConfig

VARIANTS = ("relative", "smoke")


@dataclasses.dataclass
class LSTNetConfig(SeriesExperiment):
    """Hyper-parameters of LSTNet."""

    name: str = "LSTNet"
    batch_size: int = 128
    num_steps: int = 6_800
    eval_every: int = 340
    patience: int = 12
    best_metric: str = "rse"
    checkpoint_every: int = runtime(340)
    loss_kind: str = "absolute"
    skip_period: int = 24
    """Steps p between the states of the skip-recurrent layer; 0: no such layer."""
    skip_features: int = 5
    """Width of its state."""
    data: SeriesConfig = dataclasses.field(
        default_factory=lambda: SeriesConfig(window=168, horizons=("3",), scaling="max_abs")
    )
    model: SequenceModelConfig = dataclasses.field(
        default_factory=lambda: SequenceModelConfig(
            encoder=SequenceEncoderConfig("conv", features=(50,), kernel_size=6, dropout_rate=0.2),
            recurrent=RecurrentConfig("gru", features=50),
            head=HeadConfig("last", dropout_rate=0.2),
            autoregressive_steps=24,
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(name="adam", learning_rate=1e-3, clip_norm=10.0)
    )

    def validate(self) -> None:
        """Checks the values as ``SeriesExperiment.validate``, and those of the skip layer."""
        super().validate()
        check_at_least("config", self, {"skip_period": 0, "skip_features": 1})

    def make_model(self) -> SequenceModel:
        """Returns the network that ``model`` describes, with the skip-recurrent layer."""
        model = super().make_model()
        if not self.skip_period:
            return model
        if model.recurrent is None:
            raise ValueError(
                "model.recurrent.cell: expected a cell beside the skip-recurrent layer, received "
                "'none'; for the CNN alone give --config.skip_period=0, too"
            )
        make_cell = partial(GRUCell, self.skip_features, dtype=self.model.dtype)
        return model.clone(
            recurrent=WithSkip(model.recurrent, SkipRecurrent(make_cell, self.skip_period))
        )


def get_config(variant: str | None = None) -> LSTNetConfig:
    """Returns the configuration of a variant.

    Raises:
      ValueError: no such variant.
    """
    config = LSTNetConfig()
    if variant is None:
        return config
    if variant == "relative":
        config.model.relative = True
        config.num_steps, config.eval_every, config.checkpoint_every = 272, 68, 68
        return config
    if variant == "smoke":
        config.batch_size, config.num_steps, config.eval_every = 8, 4, 2
        config.data = SeriesConfig("embedded", window=12, horizons=("3",), stride=4)
        config.skip_period, config.skip_features = 6, 2
        config.model.encoder.features = (8,)
        config.model.recurrent.features = 8
        config.model.autoregressive_steps = 4
        return config
    raise ValueError(f"lstnet:{variant}: no such variant{nearest(variant, VARIANTS)}")
