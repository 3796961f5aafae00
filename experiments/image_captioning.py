r"""Captions of photographs of one's own, by one command.

    python -m launch.train --config=experiments/image_captioning.py --workdir=runs/mine \
        --config.data.root=photographs --config.data.list=captions.csv
    python -m launch.evaluate --workdir=runs/mine --split=test
    python -m launch.report --workdir=runs/mine
    python -m launch.caption --workdir=runs/mine PHOTO.jpg

The list is CSV, TSV, JSON or JSON lines with columns or keys such as ``image`` and ``caption``
(several rows, or a list, for each image) and optionally ``split``, or COCO's or Karpathy's JSON.
Without a list, the captions of ``NAME.jpg`` stand in ``NAME.txt`` beside it, one a line. The form
is recognised by its content and said (``data/datasets/image_captions.py``).

Images without a split are drawn into train, validation and test by a seed; images of the same
content stay together. The workdir keeps all names, captions and splits in ``split.csv``, itself a
list, so that a trained model is evaluated on the same images wherever these are, and when those of
the training are gone. Another list at evaluation, none of whose captioned images the run knows, is
test data as a whole.

The model is that of Show, Attend and Tell (``experiments/show_attend_tell.py``), for few images
and a CPU: a frozen EfficientNet-Lite0, whose feature maps of mirrored and cropped views are encoded
once and cached; half as wide a decoder; two lengths of batches instead of eight, since each is
compiled; an end after three evaluations without a better CIDEr.

Fine-tuning starts from the parameters of a trained captioner, by default the one that comes with
the project, and adds the words that it lacks:

    python -m launch.train --config=experiments/image_captioning.py:finetune --workdir=runs/tuned \
        --config.data.root=photographs --config.data.list=captions.csv

``--config.start=runs/show_attend_tell`` starts from a captioner of one's own instead.

Variants: ``finetune``; ``smoke``, a small network on the embedded videos for a few seconds. Other
decoders: ``--config.model.decoder.name=up_down``.

Results on 80 photographs of COCO with 400 captions: 48 train, 16 validate, 16 test; one split and
seed, so that differences of some points say little. Scores in %, test split, beams of 5:

| | BLEU-4 | METEOR | ROUGE-L | CIDEr | steps, best of | CPU time |
| --- | --- | --- | --- | --- | --- | --- |
| from scratch | 11.5 | 14.6 | 40.9 | 23.8 | 300 of 700 | 2.3 minutes |
| ``finetune`` | 15.7 | 17.9 | 43.7 | 44.9 | 100 of 100 | 1.2 minutes |

The second starts from a captioner after 938 steps on Flickr8k (validation CIDEr 45.5 there); its
validation CIDEr was still rising. From scratch, the loss on validation images is lowest after 200
steps.
"""

import dataclasses
import functools
import logging
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from data.captions.images import check_max_pixels
from data.captions.vocabulary import Vocabulary, split_words
from data.datasets.array_record_folder import bad_positions
from data.datasets.caption_splits import make_split
from data.datasets.captioned_images import Missing, first_few
from data.datasets.image_captions import ImageCaptions, read_captioned_images, write_list
from data.datasets.tfds_records import TfdsConfig, read_captioned_records
from data.loader import Loader
from experiments.captioning.config import (
    VOCABULARY,
    CaptionConfig,
    CaptionModelConfig,
    configure,
)
from experiments.captioning.data import (
    CaptionDataConfig,
    CaptionedSplit,
    caches_features,
    check_missing,
    image_transform,
    read_split,
    split_of_images,
    training_views,
)
from experiments.features.frozen_features import describe_frozen_encoder
from flaxnets.configuration import nearest, path_field, runtime
from flaxnets.decoders.config import DecoderConfig
from flaxnets.decoders.search import SearchOptions
from flaxnets.inference.loading import shipped_models
from flaxnets.inference.store import VARIABLES, read_description, read_variables
from flaxnets.training.checkpoint import restore_variables
from flaxnets.training.config import OptimizerConfig, data_differences
from flaxnets.training.distributed import is_first
from flaxnets.training.workdir import Workdir

logger = logging.getLogger(__name__)

SPLIT = "split.csv"
"""File of the images, captions and splits in a workdir; a list as ``data.list`` takes it."""
VARIANTS = ("finetune", "smoke")
CAPTIONER = "captioner"
"""Model that comes with the project, from which ``finetune`` starts."""


@dataclasses.dataclass
class ImageCaptionDataConfig(CaptionDataConfig):
    """Photographs of one's own, from a list or with a text beside each."""

    kind: str = "files"
    """``files``; ``tfds``: images that TFDS has prepared in the folder ``root``; or
    ``moving_shapes``: the embedded videos."""
    tfds: TfdsConfig = dataclasses.field(default_factory=TfdsConfig)
    """Builder and keys of a data set of TFDS."""
    bad_shards: str = runtime("fail")
    """Converted images only (``python -m data.convert``): shards with a wrong checksum end the run
    (``fail``), their images are left out and counted (``skip``), or no checksum is computed
    (``trust``)."""
    list: str = path_field(runtime=True)
    """Images and captions: CSV, TSV, JSON, JSON lines, COCO's or Karpathy's JSON, recognised by its
    content (``data/datasets/image_captions.py``); a relative path may start at ``root``. Empty: a
    file ``captions.*`` or ``metadata.*`` in ``root``, or else ``NAME.txt`` beside ``NAME.jpg``."""
    validation_share: float = 0.1
    """Images without a split only: share of validation images, in [0,1)."""
    test_share: float = 0.1
    """Images without a split only: share of test images, in [0,1)."""
    least_held_out: int = 20
    """Images without a split only: validation and test get so many images at least, but a fifth of
    all images at most: CIDEr says little on fewer."""
    split_seed: int = 0
    """Images without a split only: seed of the split."""

    def __post_init__(self) -> None:
        # No field, so it is neither a flag nor part of config.json.
        self._listed: ImageCaptions | None = None

    @property
    def listed(self) -> ImageCaptions:
        """All images with their splits: those of the run, or those of the list.

        Raises:
          ValueError: as ``read_captioned_images``, or too few images for a split.
          FileNotFoundError: as ``read_captioned_images``.
        """
        if self._listed is not None:
            return self._listed
        check_missing(self)
        return _list_images(
            self.root,
            self.list,
            dataclasses.astuple(self.tfds) if self.kind == "tfds" else (),
            self.bad_shards,
            cast(Missing, self.missing),
            self.validation_share,
            self.test_share,
            self.least_held_out,
            self.split_seed,
        )

    def use_split(self, path: Path, *, resumes: bool = False) -> None:
        """Reads the split of a run; data that share no captioned image with it are test data.

        Args:
          path: file that ``write_list`` wrote.
          resumes: whether the run goes on training. Data with other images or captions are then
            left as they are, for the workdir's record of its data to refuse them.
        """
        root = self.root or Path(self.list).parent
        recorded = read_captioned_images(root, path, missing="keep")
        self._listed = recorded
        try:
            now = read_captioned_images(self.root, self.list, missing="keep")
        except (OSError, ValueError):  # The list is gone.
            return
        known = dict(zip(recorded.names, recorded.images.captions, strict=True))
        pairs = list(zip(now.names, now.images.captions, strict=True))
        if resumes:
            shared = [known[name] == texts for name, texts in pairs if name in known]
            if not shared or not all(shared):
                self._listed = None
                return
        elif not any(known.get(name) == texts for name, texts in pairs):
            every = range(len(pairs))
            self._listed = now if now.has_splits else now.take(every, ["test"] * len(pairs))
            logger.info("%s: none of the run's images; its images are the test split", now.source)
            return
        if new := sorted(set(now.names) - set(known)):
            note = (
                f"{len(new)} images of {now.source} are not in the split of this run and are left "
                f"out ({first_few(new)}); a new --workdir splits all anew"
            )
            self._listed = dataclasses.replace(recorded, notes=(*recorded.notes, note))

    def read(self, split: str) -> CaptionedSplit:
        """Returns a split of the listed images."""
        if self.kind == "moving_shapes":
            return super().read(split)
        if self.kind not in ("files", "tfds"):
            kinds = ("files", "tfds", "moving_shapes")
            raise ValueError(f"data.kind: unknown {self.kind!r}{nearest(self.kind, kinds)}")
        check_missing(self)
        check_max_pixels(self.max_pixels)
        chosen = self.listed.select(split, missing=cast(Missing, self.missing))
        return _split(chosen, split, image_transform(self), self.max_pixels)


# Digests of all images are part of it.
_split = functools.lru_cache(maxsize=8)(split_of_images)


@functools.lru_cache(maxsize=4)
def _list_images(
    root: str,
    list_file: str,
    tfds: tuple[Any, ...],
    bad_shards: str,
    missing: Missing,
    validation_share: float,
    test_share: float,
    least: int,
    seed: int,
) -> ImageCaptions:
    """Returns the images of a list or folder, each in a split."""
    if not root and not list_file:
        raise ValueError(
            "data.root, data.list: expected the folder of the images, and a list of images and "
            "captions unless each image has a text beside it; give --config.data.root=… and "
            "--config.data.list=…"
        )
    if tfds:
        listed = read_captioned_records(root, TfdsConfig(*tfds))
    else:
        listed = read_captioned_images(root, list_file, missing=missing)
    lost, note = bad_positions(listed.images.paths, bad_shards)
    if lost:
        left = sorted(set(range(len(listed.names))) - set(lost))
        kept = listed.take(left, listed.splits)
        listed = dataclasses.replace(kept, notes=(*listed.notes, note))
    return make_split(
        listed,
        validation_share=validation_share,
        test_share=test_share,
        least=least,
        seed=seed,
    )


@dataclasses.dataclass
class ImageCaptioningConfig(CaptionConfig):
    """Hyper-parameters of a captioner of photographs of one's own."""

    name: str = "Captioner of own photographs"
    batch_size: int = 32
    num_steps: int = 1_000
    eval_every: int = 100
    checkpoint_every: int = runtime(100)
    patience: int = 3
    ema_decay: float = 0.99
    start: str = path_field(names=(CAPTIONER, *shipped_models()))
    """Trained captioner with the same encoder and decoder, from whose parameters training starts,
    and whose words come first in the vocabulary: the workdir of a run, the folder of a model, or
    the name of a model that comes with the project. Empty: random parameters."""
    data: ImageCaptionDataConfig = dataclasses.field(
        default_factory=lambda: ImageCaptionDataConfig(min_count=2, max_words=20, num_buckets=2)
    )
    model: CaptionModelConfig = dataclasses.field(
        default_factory=lambda: CaptionModelConfig(
            decoder=DecoderConfig(
                "soft_attention", features=256, embed_features=256, attention_features=256
            ),
            region_features=256,
        )
    )
    search: SearchOptions = dataclasses.field(
        default_factory=lambda: SearchOptions(
            beam_size=5, max_steps=30, length_normalization="wu", length_alpha=1.15
        )
    )
    optimizer: OptimizerConfig = dataclasses.field(
        default_factory=lambda: OptimizerConfig(
            name="adamw", learning_rate=1e-3, warmup_steps=50, weight_decay=0.2, clip_norm=1.0
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._told = False

    def validate(self) -> None:
        """Checks the values as ``CaptionConfig.validate``, and that ``start`` sees such images."""
        super().validate()
        if self.start:
            encoder, transform = self.model.encoder, image_transform(self.data)
            now = {
                "encoder": describe_frozen_encoder(encoder, "none")["digest"]
                if encoder.frozen
                else "",
                "size": transform.size,
                "stretch": transform.stretch,
            }
            start_of(self.start).check(now)

    @property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of the training captions, after that of ``start``, or of the trained model."""
        if self._vocabulary is None and self.start:
            known = start_of(self.start).vocabulary
            own = _frequent_words(self.data)
            new = [word for word in own if word not in set(known.words)]
            self._vocabulary = Vocabulary((*known.words, *new))
        return super().vocabulary

    def save_assets(self, folder: Path) -> None:
        """Writes the vocabulary and the split, and says what to do with the trained model."""
        super().save_assets(folder)
        if self.is_video:
            return
        write_list(folder / SPLIT, self.data.listed)
        split = "test" if "test" in self.data.listed.splits else "validation"
        where = f"--workdir={shlex.quote(str(folder))}"
        logger.info("split         written to %s", folder / SPLIT)
        logger.info("afterwards    python -m launch.evaluate %s --split=%s", where, split)
        logger.info("              python -m launch.report %s --split=%s", where, split)
        logger.info("              python -m launch.caption %s PHOTO.jpg", where)

    def load_assets(self, folder: Path) -> None:
        """Reads the vocabulary and the split of a trained model."""
        super().load_assets(folder)
        if (folder / SPLIT).exists() and not self.is_video:
            self.data.use_split(folder / SPLIT)

    def resume_assets(self, folder: Path) -> None:
        """Reads the split of a run that resumes; images that came since are no part of it."""
        super().resume_assets(folder)
        # Without a checkpoint the run starts anew, and so does its split.
        started = any((folder / "checkpoints").glob("[0-9]*"))
        if started and (folder / SPLIT).exists() and not self.is_video:
            self.data.use_split(folder / SPLIT, resumes=True)

    def make_data(self, split: str) -> Loader:
        """Returns the batches of a split; says what was chosen before training data are encoded."""
        if split == "train" and not (self.is_video or self._told) and is_first():
            self._told = True  # A rehearsal makes the data, too.
            for line in self.describe_choices():
                logger.info("%s", line)
        return super().make_data(split)

    def describe_choices(self) -> list[str]:
        """Returns lines that say how the data were read and what is trained."""
        listed = self.data.listed
        counts = Counter(listed.splits)
        train = read_split(self.data, "train")
        words = [word for texts in train.captions for text in texts for word in split_words(text)]
        known = set(self.vocabulary.words)
        unknown = sum(word not in known for word in words) / max(len(words), 1)
        captions = sum(map(len, listed.images.captions))
        views = len(
            training_views(self.data, train, cached=caches_features(self.data, self.model.encoder))
        )
        left_out = [
            f"{len(found)} {what} ({first_few(found)})"
            for what, found in (
                ("images without captions", listed.uncaptioned),
                ("captions without words", listed.wordless),
                ("repeated rows", listed.repeated),
                ("images without a file", listed.images.missing),
            )
            if found
        ]
        decoder, encoder = self.model.decoder, self.model.encoder
        return [
            f"data          {listed.source}: {listed.form}",
            f"images        {len(listed.names)} with {captions} captions",
            *([f"left out      {'; '.join(left_out)}"] if left_out else []),
            *(f"split         {note}" for note in listed.notes),
            "split         "
            + ", ".join(
                f"{name} {counts[name]}" for name in ("train", "validation", "test") if counts[name]
            ),
            f"vocabulary    {len(known)} words: those that occur {self.data.min_count} times in "
            f"training captions{f', and those of {self.start}' if self.start else ''}; "
            f"{unknown:.1%} of the words in these captions are unknown",
            f"encoder       {encoder.name} ({encoder.weights or 'random'}), "
            + (
                f"frozen; {views} views of each training image are encoded once and kept in "
                f"{self.data.cache}"
                if encoder.frozen
                else "fine-tuned"
            ),
            f"decoder       {decoder.name}, {decoder.features} units, "
            + (f"from {self.start}" if self.start else "from scratch"),
            f"training      {self.num_steps} steps of {self.batch_size} at most; ends after "
            f"{self.patience} evaluations, each {self.eval_every} steps, without a better "
            f"{self.best_metric}; the best checkpoint counts",
        ]

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the variables of ``start``, with rows for the words that are new."""
        variables = super().initial_variables(variables)
        if not self.start:
            return variables
        trained = start_of(self.start).read_variables()
        return extend_variables(trained, variables, len(self.vocabulary), self.start)


@dataclasses.dataclass(frozen=True)
class Start:
    """A trained captioner that another one starts from.

    Attributes:
      name: as it was given.
      folder: a workdir, or a folder with ``model.json``.
    """

    name: str
    folder: Path

    @property
    def vocabulary(self) -> Vocabulary:
        """Its vocabulary."""
        return Vocabulary.load(self.folder / VOCABULARY)

    @property
    def is_run(self) -> bool:
        """True for the workdir of a run."""
        return (self.folder / "config.json").exists()

    def check(self, images: Mapping[str, Any]) -> None:
        """Checks that it was trained on such images.

        Args:
          images: digest of the ``encoder``'s weights, ``size`` and ``stretch`` of its images.

        Raises:
          ValueError: other images, or an encoder with other weights.
        """
        if self.is_run:
            recorded = Workdir(self.folder).read_data()["preprocessing"]
            encoder, transform = recorded.get("weights"), recorded.get("transform", {})
        else:
            described = read_description(self.folder)
            encoder, transform = (
                (described["encoder"] or {}).get("digest"),
                described["preprocessing"],
            )
        there = {
            "encoder": "" if encoder in (None, "random") else encoder,
            "size": transform.get("size"),
            "stretch": transform.get("stretch"),
        }
        if lines := data_differences(there, images):
            raise ValueError(
                "start: expected a captioner of images that are encoded as by --config.model and "
                f"--config.data, received {self.name}: {'; '.join(lines)}"
            )

    def read_variables(self) -> Mapping[str, Any]:
        """Returns its variables, those of the best checkpoint of a run."""
        if not self.is_run:
            return read_variables(self.folder / VARIABLES)
        step, variables = restore_variables(Workdir(self.folder))
        logger.info("parameters start from step %d of %s", step, self.folder)
        return variables


def start_of(name: str) -> Start:
    """Returns the captioner of a folder, or that of a name.

    Raises:
      ValueError: neither a folder nor the name of a model that comes with the project.
    """
    shipped = shipped_models()
    if not Path(name).is_dir() and name not in shipped:
        raise ValueError(
            f"start: expected the workdir or folder of a captioner, received {name!r}"
            f"{nearest(name, shipped) if shipped else ''}; give --config.start=WORKDIR of a run of "
            "experiments/show_attend_tell.py or of this experiment"
        )
    return Start(name, Path(name) if Path(name).is_dir() else shipped[name])


def extend_variables(
    trained: Mapping[str, Any], variables: Mapping[str, Any], num_words: int, start: str
) -> Mapping[str, Any]:
    """Returns trained variables, whose axes of words are as long as those of new ones.

    Entries of further words are those of the new variables.

    Args:
      trained: variables of a captioner.
      variables: variables of a captioner that knows more words.
      num_words: ids of the vocabulary, with which an axis of words is as long.
      start: origin of ``trained``, for the error.

    Raises:
      ValueError: other parts or other shapes.
    """

    def extend(path: Any, new: Any, *old: Any) -> Any:
        there, here = np.asarray(old[0]), np.array(new)
        fits = there.ndim == here.ndim and all(
            a == b or (b == num_words and a < b)
            for a, b in zip(there.shape, here.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"start: expected parameters of the shape {here.shape} at "
                f"{jax.tree_util.keystr(path)}, received {there.shape} in {start}; --config.model "
                "must describe that captioner (experiments/image_captioning.py:finetune: one of "
                "experiments/show_attend_tell.py)"
            )
        here[tuple(map(slice, there.shape))] = there
        return here

    try:
        return jax.tree_util.tree_map_with_path(extend, dict(variables), dict(trained))
    except ValueError as error:
        if str(error).startswith("start:"):
            raise
        raise ValueError(
            f"start: expected a captioner with the same parts, received {start}: {error}"
        ) from None


def _frequent_words(data: CaptionDataConfig) -> tuple[str, ...]:
    """Returns the words of the training captions that are frequent enough, possibly none."""
    texts = [text for texts in read_split(data, "train").captions for text in texts]
    try:
        return Vocabulary.from_captions(texts, data.min_count).words
    except ValueError:
        return ()


def get_config(variant: str | None = None) -> ImageCaptioningConfig:
    """Returns the configuration of a variant.

    Raises:
      ValueError: an unknown variant.
    """
    config = ImageCaptioningConfig()
    if variant is None:
        return config
    if variant not in VARIANTS:
        raise ValueError(f"image_captioning:{variant}: no such variant{nearest(variant, VARIANTS)}")
    if variant == "smoke":
        configured: ImageCaptioningConfig = configure(config, "image_captioning", variant)
        return configured
    config.name, config.start = f"{config.name}, fine-tuned", CAPTIONER
    # The parts of ``show_attend_tell``, whose captioners it starts from.
    config.model = CaptionModelConfig(decoder=DecoderConfig("soft_attention"))
    config.num_steps, config.eval_every, config.checkpoint_every = 400, 50, 50
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 2e-4, 20
    return config
