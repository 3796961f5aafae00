r"""Series of one's own: forecasts beside the naive ones, or classes of windows and sequences.

    python -m launch.train --config=experiments/series.py --workdir=runs/forecast \
        --config.data.list=series.csv --config.data.time=date \
        --config.data.horizons=1-24 --config.data.period=24
    python -m launch.evaluate --workdir=runs/forecast --split=test
    python -m launch.predict --workdir=runs/forecast series.csv

``series.csv`` has a row for each time; its columns are named or, without a header, numbered from 0
(``data/datasets/series_csv.py`` lists what is read: CSV, NPZ, Parquet, several series in groups,
missing values). The first 60 % of the rows train, the next 20 % validate, the last 20 % test
(``data.parts``), or whole groups do (``--config.data.split_by=group``, or a column
``--config.data.split``). A window belongs to the part in which its targets lie. The scaling is that
of the training part alone. Where values are missing, the network also reads the mask of those that
are there, a missing value of a channel that is forecast is read as the one before it, and targets
that are missing count neither in the loss nor in a score; a network that was trained without
missing values refuses them. ``--config.data.missing=-999``, ``data.separator`` and ``data.decimal``
tell what a file writes for them and between its cells.

Each evaluation has, in the units of the file, RSE and CORR as in LSTNet (Lai et al., 1703.07015,
section 4.2), RMSE and MAE (``rse``, ``corr``, ``rmse``, ``mae``), and the same of the last value
carried forward (``rse_last`` …) and, with ``data.period``, of the value one period before
(``rse_seasonal`` …). ``squared_error`` and ``absolute_error`` are in the scale of the training
part, which are the MSE and MAE of papers on the electricity transformers (ETT). Their custom for
the hourly files:

    --config.data.list=ETTh1.csv --config.data.time=date --config.data.parts=8640,2880,2880 \
    --config.data.window=96 --config.data.horizons=1-24 --config.data.period=24

Classes: of each window's last step, with a column of labels; or of whole sequences, as the archives
of UEA and UCR have them:

    --config.data.task=classify --config.data.list=sensors.csv --config.data.label=activity
    --config.data.task=classify --config.data.root=folder_with_NAME_TRAIN.ts_and_NAME_TEST.ts

or as TFDS has prepared them (``data/datasets/tfds_records.py`` has the command), by their keys:

    --config.data.task=classify --config.data.dataset=tfds --config.data.root=DATA_DIR \
        --config.data.tfds.builder=smartwatch_gestures --config.data.tfds.label=gesture \
        --config.data.tfds.sequence=features/accel_x,features/accel_y,features/accel_z

The network: a convolution over time (CNN), a GRU (RNN), a linear layer on the last state, and for
forecasts a linear autoregression of each channel beside it (LSTNet's, section 3.6), all relative
to the last observed value (``--config.model.relative=False``: not). The CNN alone:
``--config.model.recurrent.cell=none``; the RNN alone: ``--config.model.encoder.name=none``; dilated
convolutions: ``--config.model.encoder.name=tcn``.

Variants:
  - none: the network above.
  - ``smoke``: a small one on generated sines, a few seconds.
"""

import dataclasses

from experiments.sequences.series import SeriesConfig, SeriesExperiment
from flaxnets.configuration import nearest, runtime
from flaxnets.encoders.sequence_config import SequenceEncoderConfig
from flaxnets.heads.config import HeadConfig
from flaxnets.models.sequence_model import SequenceModelConfig
from flaxnets.recurrent.config import RecurrentConfig
from flaxnets.training.config import OptimizerConfig

VARIANTS = ("smoke",)


@dataclasses.dataclass
class OwnSeriesConfig(SeriesExperiment):
    """Hyper-parameters of a network on series of one's own."""

    name: str = "conv-GRU"
    batch_size: int = 64
    num_steps: int = 2_000
    eval_every: int = 100
    patience: int = 6
    checkpoint_every: int = runtime(100)
    model: SequenceModelConfig = dataclasses.field(
        default_factory=lambda: SequenceModelConfig(
            encoder=SequenceEncoderConfig("conv", features=(32,), kernel_size=5, dropout_rate=0.2),
            recurrent=RecurrentConfig("gru", features=64),
            head=HeadConfig("last", dropout_rate=0.2),
            autoregressive_steps=24,
            relative=True,
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            name="adamw", schedule="cosine", warmup_steps=50, weight_decay=1e-3, clip_norm=1.0
        )
    )


def get_config(variant: str | None = None) -> OwnSeriesConfig:
    """Returns the configuration of a variant.

    Raises:
      ValueError: no such variant.
    """
    config = OwnSeriesConfig()
    if variant is None:
        return config
    if variant == "smoke":
        config.batch_size, config.num_steps, config.eval_every = 8, 4, 2
        config.data = SeriesConfig("embedded", window=12, horizons=("1-2",), period=12, stride=4)
        config.model.encoder.features = (8,)
        config.model.recurrent.features = 8
        config.model.autoregressive_steps = 4
        config.optimizer.warmup_steps = 1
        return config
    raise ValueError(f"series:{variant}: no such variant{nearest(variant, VARIANTS)}")
