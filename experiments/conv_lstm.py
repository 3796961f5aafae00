r"""ConvLSTM: frames that follow given ones (Shi et al., 1506.04214), and OpenSTL's ConvLSTM.

Moving MNIST, generated from the real digits (``data/frames/moving_mnist.py``), 10 frames given and
10 predicted:

    python -m launch.train --config=experiments/conv_lstm.py --workdir=runs/conv_lstm \
        --config.data.root=/data/mnist
    python -m launch.evaluate --workdir=runs/conv_lstm --split=test
    python -m launch.report --workdir=runs/conv_lstm
    python -m launch.predict --workdir=runs/conv_lstm --frames=10 --out=continued VIDEO.avi

``/data/mnist`` holds MNIST's files, or ``train.npz``. Any folder of videos, or grids of fields:

    python -m launch.train --config=experiments/conv_lstm.py:videos --workdir=runs/videos \
        --config.data.root=/my/videos
    python -m launch.train --config=experiments/conv_lstm.py:fields --workdir=runs/radar \
        --config.data.root=/my/radar.npz --config.thresholds=0.5,2

The network of the paper (``flaxnets/models/forecaster.py``): frames as 4×4 patches, encoding and
forecasting ConvLSTMs with 5×5 kernels and peepholes, states copied, a 1×1 convolution on all
forecasting layers; cross-entropy, RMSProp with a rate of 1e-3 and a decay of 0.9. Parameters and
cross-entropy a sequence (summed over frames and pixels, nats: ``nll_sequence``) in its table 1,
with 3,000 test sequences:

=========== ======================= =========== ==============
variant     layers                  parameters  cross-entropy
=========== ======================= =========== ==============
``fc_lstm`` 2 of 2048 on vectors    142,667,776 4832.49
``layers1`` 256                     13,524,496  3887.94
``layers2`` 128, 128                10,042,896  3733.56
none        128, 64, 64             7,585,296   3670.85
=========== ======================= =========== ==============

The numbers of parameters are exact, with one peephole a channel, a first forecasting layer without
inputs, and for FC-LSTM an output layer that reads the last layer alone.

``openstl`` is ConvLSTM-S of OpenSTL (2306.11249, configs/mmnist/ConvLSTM.py): frame by frame, 4
layers of 128, squared error over all predicted frames, scheduled sampling, Adam with PyTorch's
one-cycle schedule up to 5e-4, 200 epochs of 10,000 sequences in batches of 16. Its table has, on
the 10,000 published test sequences, ``mse_frame`` 29.80, ``mae_frame`` 90.64, ``ssim`` 0.9288.
``openstl_small`` has 3 layers of 64, and is cut to 4,000 steps of 8 sequences, hours on two cores.
An FC-LSTM of the same budget, data and loss:

    python -m launch.train --config=experiments/conv_lstm.py:fc_lstm --workdir=runs/fc_lstm \
        --config.data.root=/data/mnist --config.loss_kind=mse --config.best_metric=mse_frame \
        --config.model.features=512,512 --config.batch_size=8 --config.num_steps=4000 \
        --config.data.speeds=3.6,3.6

Other cells: ``--config.model.cell=convgru``; sizes: ``--config.model.features=64,64``,
``--config.model.patch_size=2``, ``--config.model.kernel_size=3``; less memory:
``--config.model.remat_steps=1``, even less with ``--config.model.remat_outer_steps=5``.

Deviations:
  - All: training sequences are drawn anew in every epoch; the test sequences are our own, of digits
    that training does not use, or those of ``--config.data.test_file=mnist_test_seq.npy``.
  - The paper's: it states neither batch size nor number of epochs (here 16 and 100), and stops by
    the validation loss, as we do by ``patience``; digits move by 3 to 5 pixels a frame, as there;
    kernels are drawn as LeCun's.
  - OpenSTL's: kernels are drawn as LeCun's, not PyTorch's uniform ones; its cells own further
    convolutions that nothing calls (15,083,520 parameters, of which 11,675,648 are used, as here).

Variants:
  - none, ``layers1``, ``layers2``, ``fc_lstm``: the paper's, above.
  - ``openstl``, ``openstl_small``: OpenSTL's, above.
  - ``bouncing_balls``: 3 balls in 32×32 pixels, embedded; minutes on two cores.
  - ``videos``, ``fields``: one's own, above.
  - ``smoke``: a small network on the embedded balls, seconds.
"""

import dataclasses

from experiments.frames.config import FramePredictionConfig
from experiments.frames.files import FrameDataConfig
from flaxnets.configuration import nearest, runtime
from flaxnets.models.forecaster import ForecasterConfig
from flaxnets.tasks.frame_sampling import FrameSamplingConfig
from flaxnets.training.config import OptimizerConfig

_PAPER = {"layers1": (256,), "layers2": (128, 128)}
VARIANTS = (
    *_PAPER,
    "fc_lstm",
    "openstl",
    "openstl_small",
    "bouncing_balls",
    "videos",
    "fields",
    "smoke",
)


@dataclasses.dataclass
class ConvLSTMConfig(FramePredictionConfig):
    """Hyper-parameters of the ConvLSTM paper's network on Moving MNIST."""

    name: str = "ConvLSTM"
    batch_size: int = 16
    num_steps: int = 62_500
    eval_every: int = 625
    patience: int = 10
    checkpoint_every: int = runtime(625)
    best_metric: str = "nll_sequence"
    loss_kind: str = "cross_entropy"
    data: FrameDataConfig = dataclasses.field(
        default_factory=lambda: FrameDataConfig(
            speeds=(3.0, 5.0), validation_sequences=2_000, test_sequences=3_000
        )
    )
    model: ForecasterConfig = dataclasses.field(
        default_factory=lambda: ForecasterConfig(
            "encoder_forecaster", features=(128, 64, 64), peepholes="channel", forget_bias=0.0
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(name="rmsprop", learning_rate=1e-3)
    )


def get_config(variant: str | None = None) -> ConvLSTMConfig:
    """Returns the configuration of a variant.

    Raises:
      ValueError: no such variant.
    """
    config = ConvLSTMConfig()
    if variant is None:
        return config
    if variant in _PAPER:
        config.model.features = _PAPER[variant]
        return config
    if variant == "fc_lstm":
        config.name = "FC-LSTM"
        config.model.cell, config.model.features = "lstm", (2048, 2048)
        config.model.patch_size, config.model.concatenate = 1, False
        return config
    if variant not in VARIANTS:
        raise ValueError(f"conv_lstm:{variant}: no such variant{nearest(variant, VARIANTS)}")
    # Frame by frame.
    config.loss_kind, config.best_metric, config.patience = "mse", "mse_frame", 0
    config.model = ForecasterConfig(features=(64, 64, 64))
    config.optimizer = OptimizerConfig(learning_rate=5e-4, schedule="onecycle", cycle_momentum=True)
    if variant in ("openstl", "openstl_small"):
        small = variant == "openstl_small"
        config.model = ForecasterConfig(
            features=(64,) * 3 if small else (128,) * 4, use_bias=False, forget_bias=0.0
        )
        config.data = FrameDataConfig()
        config.sampling = FrameSamplingConfig("scheduled")
        config.num_steps, config.eval_every = 125_000, 2_500
        config.ssim_range = 2.0
        if small:
            config.batch_size, config.num_steps, config.eval_every = 8, 4_000, 500
            # As in the full run, true frames are gone after two fifths of the steps.
            config.sampling = FrameSamplingConfig("scheduled", rate=1 / 1_600, stop_step=1_600)
        return config
    if variant == "bouncing_balls":
        config.data = FrameDataConfig("bouncing_balls", size=32, num_objects=3)
        config.data.validation_sequences = config.data.test_sequences = 200
        config.model.features = (32, 32)
        config.num_steps, config.eval_every = 1_500, 300
        return config
    if variant in ("videos", "fields"):
        config.data = FrameDataConfig(variant)
        config.num_steps, config.eval_every = 10_000, 500
        config.loss_kind = "mse_l1" if variant == "videos" else "mse"
        return config
    config.data = FrameDataConfig("bouncing_balls", num_inputs=3, num_outputs=2, size=16)
    config.data.train_sequences, config.data.num_objects = 16, 1
    config.data.validation_sequences = config.data.test_sequences = 6
    config.model = ForecasterConfig(features=(6, 4), kernel_size=3)
    config.batch_size, config.num_steps, config.eval_every = 8, 4, 2
    config.sampling = FrameSamplingConfig("scheduled")
    return config
