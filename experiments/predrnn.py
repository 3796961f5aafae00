r"""PredRNN: next frames by a memory that climbs the layers (Wang et al., NeurIPS 2017; 2103.09504).

Moving MNIST, generated from the real digits (``data/frames/moving_mnist.py``), 10 frames given and
10 predicted:

    python -m launch.train --config=experiments/predrnn.py --workdir=runs/predrnn \
        --config.data.root=/data/mnist
    python -m launch.evaluate --workdir=runs/predrnn --split=test
    python -m launch.report --workdir=runs/predrnn
    python -m launch.predict --workdir=runs/predrnn --frames=10 --out=continued VIDEO.avi

``/data/mnist`` holds MNIST's files, or ``train.npz``. A folder of one's own videos, or fields:
``--config.data.dataset=videos --config.data.root=/my/videos``.

The setting is that of OpenSTL (2306.11249, configs/mmnist/PredRNN.py and PredRNNv2.py): frames as
4×4 patches, four ST-LSTM layers of 128 with 5×5 kernels and without layer normalisation, a 1×1
convolution to the next frame; squared error over all predicted frames, Adam with PyTorch's
one-cycle schedule up to 5e-4, batches of 16, 200 epochs of 10,000 sequences. Its table for Moving
MNIST, of squared and absolute error a frame (summed over pixels) and SSIM on the 10,000 published
test sequences:

======== ========== ========= ========= ======
variant  parameters mse_frame mae_frame ssim
======== ========== ========= ========= ======
none     23,838,720 23.97     72.82     0.9462
``v2``   23,855,104 24.13     73.73     0.9453
======== ========== ========= ========= ======

PredRNN's own papers have 56.8 (NeurIPS 2017) and 48.4 (2103.09504, with ``v2``) for the squared
error, after 80,000 steps of 8 sequences.

The default reads true frames by scheduled sampling, as OpenSTL's configuration of PredRNN does;
``v2`` by reverse scheduled sampling, with the decoupling loss (``flaxnets/recurrent/st_lstm.py``)
at a weight of 0.1. ``small`` has three layers of 64, as ``conv_lstm.py:openstl_small``, and a
schedule of inputs for 4,000 steps of 8 sequences, hours on two cores.

Other cells in the place of the ST-LSTM, each with its own states only:
``--config.model.cell=convlstm``, ``convgru``, ``minconvgru``; less memory:
``--config.model.remat_steps=4``.

Deviations: training sequences are drawn anew in every epoch; the test sequences are our own, of
digits that training does not use, or those of ``--config.data.test_file=mnist_test_seq.npy``;
kernels are drawn as LeCun's, not PyTorch's uniform ones.

Variants:
  - none, ``v2``: above.
  - ``small``: above.
  - ``smoke``: ``v2`` with a small network on embedded bouncing balls, seconds.
"""

import dataclasses

from experiments.frames.config import FramePredictionConfig
from experiments.frames.files import FrameDataConfig
from flaxnets.configuration import nearest, runtime
from flaxnets.models.forecaster import EncoderForecaster, ForecasterConfig, NextFrameForecaster
from flaxnets.recurrent.st_lstm import DECOUPLING, PredRNNStack
from flaxnets.tasks.frame_sampling import REVERSE, SCHEDULED, FrameSamplingConfig
from flaxnets.training.config import OptimizerConfig

VARIANTS = ("v2", "small", "smoke")
ST_LSTM = "stlstm"
DECOUPLING_WEIGHT = 0.1
"""Of the authors' and OpenSTL's runs on Moving MNIST."""


@dataclasses.dataclass
class PredRNNConfig(FramePredictionConfig):
    """Hyper-parameters of PredRNN on Moving MNIST."""

    name: str = "PredRNN"
    batch_size: int = 16
    num_steps: int = 125_000
    eval_every: int = 2_500
    checkpoint_every: int = runtime(625)
    ssim_range: float = 2.0
    sampling: FrameSamplingConfig = dataclasses.field(
        default_factory=lambda: FrameSamplingConfig(SCHEDULED)
    )
    model: ForecasterConfig = dataclasses.field(
        default_factory=lambda: ForecasterConfig(
            cell=ST_LSTM, features=(128,) * 4, use_bias=False, forget_bias=1.0
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            learning_rate=5e-4, schedule="onecycle", cycle_momentum=True
        )
    )

    def make_model(self) -> NextFrameForecaster | EncoderForecaster:
        """Returns the network; ST-LSTMs share one memory, and may have the decoupling loss."""
        model = super().make_model()
        if self.model.cell != ST_LSTM or not isinstance(model, NextFrameForecaster):
            return model
        stack = PredRNNStack(
            self.model.features,
            kernel_size=(self.model.kernel_size, self.model.kernel_size),
            decoupling=DECOUPLING in self.auxiliary_weights,
            dtype=self.model.dtype,
        )
        return model.clone(stack=stack)

    def validate(self) -> None:
        """Checks the values as ``FramePredictionConfig.validate``, and that there is the loss."""
        super().validate()
        unknown = sorted(set(self.auxiliary_weights) - {DECOUPLING})
        if unknown or (self.auxiliary_weights and self.model.cell != ST_LSTM):
            raise ValueError(
                f"auxiliary_weights: expected at most {DECOUPLING!r}, with model.cell={ST_LSTM!r}, "
                f"received {self.auxiliary_weights} with {self.model.cell!r}"
            )


def get_config(variant: str | None = None) -> PredRNNConfig:
    """Returns the configuration of a variant.

    Raises:
      ValueError: no such variant.
    """
    config = PredRNNConfig()
    if variant is None:
        return config
    if variant not in VARIANTS:
        raise ValueError(f"predrnn:{variant}: no such variant{nearest(variant, VARIANTS)}")
    if variant == "small":
        config.model.features = (64, 64, 64)
        config.batch_size, config.num_steps, config.eval_every = 8, 4_000, 500
        # As in the full run, true frames are gone after two fifths of the steps.
        config.sampling = FrameSamplingConfig(SCHEDULED, rate=1 / 1_600, stop_step=1_600)
        return config
    config.sampling = FrameSamplingConfig(REVERSE)
    config.auxiliary_weights = {DECOUPLING: DECOUPLING_WEIGHT}
    if variant == "v2":
        return config
    config.data = FrameDataConfig("bouncing_balls", num_inputs=3, num_outputs=2, size=16)
    config.data.train_sequences, config.data.num_objects = 16, 1
    config.data.validation_sequences = config.data.test_sequences = 6
    config.model.features, config.model.kernel_size = (4, 4), 3
    config.batch_size, config.num_steps, config.eval_every = 8, 4, 2
    return config
