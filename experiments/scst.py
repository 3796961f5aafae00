"""Self-critical sequence training: captions that the model draws are rewarded by CIDEr-D.

Rennie et al., "Self-critical Sequence Training for Image Captioning", arXiv:1612.00563.

    python -m launch.train --config=experiments/scst.py:flickr8k --workdir=runs/scst \
        --config.data.root=…/flickr8k --config.start=runs/show_attend_tell

First a model is trained on people's captions, ``experiments/show_attend_tell.py`` or this file's
``cross_entropy`` variant (Att2in with scheduled sampling, the paper's); ``start`` is its workdir,
and ``model.decoder.name`` says which it is. Only videos may do without ``start`` and begin from
nothing.

Variants: ``flickr8k`` (the default), ``coco`` (Karpathy's split), ``moving_shapes``, ``smoke``;
``cross_entropy`` trains Att2in on Flickr8k for the start.

Paper, Karpathy's test split of COCO, Att2in on ResNet-101: CIDEr 101.3 → 111.4 … 114.0 for one
model (secondary sources); the server's 104.9 → 114.7 is of an ensemble. Ours: README.

Deviations: EfficientNet-Lite0, frozen; the baseline is the mean reward of an image's other samples
(2003.09971) unless ``baseline`` says ``greedy``, the paper's; on Flickr8k, whose 6,000 images a
trained model knows, captions of the three most similar training images count for a third of a
reward (``caption_neighbours.py``); those of the task's docstring.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.captions.vocabulary import Vocabulary
from data.loader import Loader
from experiments.captioning.caption_weights import count_frequencies
from experiments.captioning.config import VOCABULARY, CaptionConfig, configure
from experiments.captioning.data import read_split
from flaxnets.configuration import runtime
from flaxnets.tasks.self_critical import SelfCritical
from flaxnets.tasks.task import Task
from flaxnets.training.checkpoint import restore_variables
from flaxnets.training.config import OptimizerConfig
from flaxnets.training.workdir import Workdir


@dataclasses.dataclass
class SCSTConfig(CaptionConfig):
    """The hyper-parameters."""

    name: str = "SCST"
    batch_size: int = 32
    num_steps: int = 800
    eval_every: int = 200
    checkpoint_every: int = runtime(200)
    patience: int = 5
    ema_decay: float = 0.99
    start: str = ""
    """The workdir of a trained captioner of the same decoder and vocabulary."""
    start_step: int = 0
    """Which of its checkpoints; 0: the best."""
    self_critical: bool = True
    """False: cross-entropy, with scheduled sampling where it is set."""
    num_samples: int = 5
    baseline: str = "leave_one_out"
    """``leave_one_out`` or ``greedy``."""
    image_dropout: bool = True
    """Whether ``model.feature_dropout_rate`` and ``model.region_dropout_rate`` act on the images of
    which captions are drawn."""
    drawn_steps: int = 0
    """The most tokens of a caption that is drawn; 0: ``search.max_steps``."""
    temperature: float = 1.0
    """Of the probabilities by which captions are drawn, and whose gradient is taken."""
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            name="adam", learning_rate=2e-4, schedule="cosine", clip_norm=1.0
        )
    )

    def validate(self) -> None:
        """See ``Config.validate``."""
        super().validate()
        begins = self.start or self.initialize_from or self.data.kind == "moving_shapes"
        if self.self_critical and not begins:
            raise ValueError(
                "start: expected the workdir of a trained captioner, whose captions are rewarded, "
                "received ''"
            )

    def save_assets(self, folder: Path) -> None:
        """The vocabulary, which must be that of ``start``."""
        if self.start:
            self.vocabulary.require_same(Vocabulary.load(Path(self.start) / VOCABULARY))
        super().save_assets(folder)

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those of a checkpoint of ``start``, the best unless ``start_step`` says which."""
        if not self.start:
            return super().initial_variables(variables)
        return restore_variables(Workdir(self.start), self.start_step or None, like=variables)[1]

    def make_task(self) -> Task:
        """Rewards, or cross-entropy."""
        if not self.self_critical:
            return super().make_task()
        captions = read_split(self.data, "train").captions
        return SelfCritical(
            **self._task_options(),
            frequencies=count_frequencies(captions, self.vocabulary, self.data.cache),
            num_samples=self.num_samples,
            baseline=self.baseline,
            image_dropout=self.image_dropout,
            drawn_steps=self.drawn_steps,
            temperature=self.temperature,
        )

    def make_data(self, split: str) -> Loader:
        """Images with all their captions, against which what is drawn is scored."""
        return self._loader(split, pairs=not self.self_critical)


def get_config(variant: str | None = None) -> SCSTConfig:
    """The configuration of a variant.

    Raises:
      ValueError: an unknown variant.
    """
    config = SCSTConfig()
    if variant == "cross_entropy":
        config.name, config.model.decoder.name, config.self_critical = "Att2in", "att2in", False
        plain = CaptionConfig()
        config.batch_size, config.num_steps = plain.batch_size, plain.num_steps
        config.eval_every = config.checkpoint_every = plain.eval_every
        config.sampling_increase, config.sampling_every = 0.05, plain.eval_every
        config.optimizer, config.patience = plain.optimizer, plain.patience
        config.ema_decay = plain.ema_decay
        return config
    configured: SCSTConfig = configure(config, "scst", variant)
    if variant in (None, "flickr8k"):
        configured.num_steps, configured.eval_every, configured.checkpoint_every = 3_600, 400, 400
        # With its own captions alone as references CIDEr stood still after 1,600 steps (README).
        configured.data.num_neighbours, configured.drawn_steps = 3, 16
    return configured
