"""Configuration that the experiments on labelled files of one's own share: data, splits, assets."""

import dataclasses
import logging
import os
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax

from data.datasets.array_record_folder import MODES, keep_whole_shards
from data.datasets.labelled_files import LabelledFiles, read_labelled_files
from data.datasets.list_file import read_list, some
from data.datasets.splits import make_split, read_split_file, write_split
from data.datasets.tfds_records import TfdsConfig, read_labelled_records
from data.loader import Loader
from data.moving_shapes.source import MovingShapes
from experiments.classification.other_data import Given, find_given, match_names, place
from experiments.features.frozen_features import describe_encoder
from flaxnets.configuration import check_at_least, nearest, path_field, runtime
from flaxnets.encoders.config import EncoderConfig, weights_file, with_encoder_weights
from flaxnets.models.column_crnn import ColumnCRNNConfig
from flaxnets.models.config import CRNNConfig
from flaxnets.recurrent.config import NONE
from flaxnets.training.config import Config, UndefinedMethod
from flaxnets.training.workdir import Workdir

SPLIT_FILE = "split.csv"
"""File of the workdir that keeps the split of the run: path, label, group, split."""

TFDS_KINDS = ("video", "image")
"""Kinds of files that are read from data sets of TFDS."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class FilesConfig:
    """Location of the files, their split, and the cache of their features."""

    dataset: str = "files"
    """``files``; ``tfds``: videos or images that TFDS has prepared in the folder ``root``; the name
    of the embedded data set (``moving_shapes``, ``generated_sounds``); or of videos that of a
    published one in ``data.datasets.action_sets``."""
    root: str = path_field(runtime=True)
    """Folder with a folder for each class, with or without ``train/``, ``validation/`` and
    ``test/`` above them; or UCF101's layout; or what the paths of a list are relative to; or what
    ``python -m data.convert`` made of one of these. It may be moved."""
    tfds: TfdsConfig = dataclasses.field(default_factory=TfdsConfig)
    """Builder and keys of a data set of TFDS."""
    list: str = path_field(runtime=True)
    """File that lists the files: CSV or TSV with the columns ``path``, ``label`` and, if there are,
    ``group`` and ``split``; or lines ``PATH LABEL`` as of Kinetics and MMAction2."""
    validation_list: str = path_field(runtime=True)
    """List of the validation files; ``list`` then lists the training files."""
    test_list: str = path_field(runtime=True)
    """List of the test files; ``list`` then lists the training files."""
    class_list: str = path_field(runtime=True)
    """Names of the classes, one a line from number 0 on, for lists whose labels are numbers."""
    group_pattern: str = ""
    """Regular expression whose first group is the recording group (person, place, session) in a
    file's name, as ``^(s[0-9]+)_``; files of one group are never on two sides of the split."""
    validation_share: float = 0.15
    """Share of the files, in (0,1), that selects the checkpoint, where the data have no validation
    split."""
    test_share: float = 0.2
    """Share of the files, in (0,1), that is tested, where the data have no test split."""
    fold: int = 0
    """Fold of a cross-validation, from 1; of UCF101's layout the number of its lists, of HMDB51 and
    JHMDB that of the split, of a list with a column of folds the one that is tested. 0: none."""
    validation_fold: int = 0
    """Of a list with a column of folds the one that validates instead of training. 0: none; the
    validation split is then cut from the training files, unless ``eval_split`` is empty."""
    num_folds: int = 10
    """Folds of a cross-validation, at least 3."""
    num_examples: int = 64
    """Embedded data only: examples of each split."""
    cache: str = path_field("runs/features", runtime=True)
    """Folder of the frozen encoder's cached features."""
    bad_shards: str = runtime("fail")
    """Converted data only: shards with a wrong checksum end the run (``fail``), their files are
    left out and counted (``skip``), or no checksum is computed (``trust``)."""
    max_bad_share: float = runtime(0.1)
    """Training fails when more than this share of its files, in [0,1], cannot be decoded."""
    num_threads: int = runtime(0)
    """Decoding threads; 0: one more than the CPU cores."""
    num_workers: int = runtime(0)
    """Decoding processes; 0: threads only, which is faster on few cores."""


@dataclasses.dataclass
class FileClassification(Config):
    """Experiment that classifies labelled files; a subclass adds ``make_data`` and the model.

    The split is made when a run starts and kept in its workdir (``split.csv``), from which a
    resumed run, an evaluation and a report read it.
    """

    kind: ClassVar[str] = "video"
    """``video``, ``image`` or ``recording``."""
    embedded_name: ClassVar[str] = "moving_shapes"
    """Name of the embedded data set."""
    published: ClassVar[Mapping[str, Callable[[str, int], LabelledFiles]]] = {}
    """Readers of published data sets by name, called with ``data.root`` and the fold, from 1."""

    best_metric: str = "loss"
    best_mode: str = "min"
    data: FilesConfig = dataclasses.field(default_factory=FilesConfig)
    model: CRNNConfig | ColumnCRNNConfig = dataclasses.field(default_factory=CRNNConfig)

    def __post_init__(self) -> None:
        # No fields, so they are neither flags nor part of config.json.
        self._class_names: tuple[str, ...] = ()
        self._files: LabelledFiles | None = None
        self._split_file: Path | None = None
        self._workdir: Path | None = None
        self._given = Given()
        self._announced = False

    # ---- Files and their split ---------------------------------------------------------------

    def validate(self) -> None:
        """Checks the values as ``Config.validate``, and those of the data."""
        super().validate()
        data = self.data
        prepared = ("tfds",) if self.kind in TFDS_KINDS else ()
        names = ("files", *prepared, self.embedded_name, *self.published)
        if data.dataset not in names:
            raise ValueError(
                f"data.dataset: unknown {data.dataset!r}{nearest(data.dataset, names)}"
            )
        if data.dataset in self.published:
            own = ("list", "validation_list", "test_list", "class_list", "group_pattern")
            if given := [name for name in own if getattr(data, name)]:
                raise ValueError(
                    f"data.{given[0]}: expected none, as {data.dataset} has lists of its own, "
                    f"received {getattr(data, given[0])!r}; data.dataset=files reads other lists"
                )
        check_at_least(
            "data", data, {"fold": 0, "validation_fold": 0, "num_examples": 1, "num_workers": 0}
        )
        if data.bad_shards not in MODES:
            raise ValueError(
                f"data.bad_shards: expected {', '.join(MODES)}, received "
                f"{data.bad_shards!r}{nearest(data.bad_shards, MODES)}"
            )
        if not self.embedded:
            self._require_root()
        weights_file(self.model.encoder)  # It is there.

    @property
    def embedded(self) -> bool:
        """True if the embedded data set takes the place of files."""
        return self.data.dataset == self.embedded_name

    def make_embedded(self, split: str) -> Any:
        """Returns a split of the embedded data set, with ``class_names`` and ``describe``."""
        return MovingShapes(split, self.data.num_examples)

    @property
    def caches_features(self) -> bool:
        """True if the network is trained on cached features, without the encoder."""
        return self.model.encoder.frozen and not self.embedded

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label: the trained model's, or else the data's."""
        if self.embedded:
            return tuple(self.make_embedded("train").class_names)
        return self._class_names or self.files.class_names

    @property
    def files(self) -> LabelledFiles:
        """All files with their split: that of the run's workdir, or else a new one."""
        if self._files is None:
            try:
                self._files = keep_whole_shards(self._read_files(), self.data.bad_shards)
            except ValueError as error:
                if not str(error).startswith("bad_shards:"):
                    raise
                raise ValueError(f"data.{error}") from None  # The flag.
        return self._files

    def select(self, split: str) -> LabelledFiles:
        """Returns the files of a split.

        Raises:
          ValueError: no such split, or one without files.
        """
        files = self.files
        indices = files.indices(split)
        if not indices:
            raise ValueError(f"split: expected one with files, received {split!r}, which has none")
        return files.take(indices)

    def in_order_of_names(self, split: str) -> tuple[LabelledFiles, list[int]]:
        """Returns all files by name, as a cache of features orders them, and a split's positions.

        Another split of the same files so finds the same cache.

        Raises:
          ValueError: no such split, or one without files.
        """
        files = self.files
        order = sorted(range(len(files)), key=lambda index: files.names[index])
        position = {index: number for number, index in enumerate(order)}
        self.select(split)
        return files.take(order), [position[index] for index in files.indices(split)]

    def _read_files(self) -> LabelledFiles:
        self._require_root()
        data = self.data
        if self._split_file is not None:
            given = self._read_given(self._split_file) if any(self._given) else None
            if given is not None:
                return given
            try:
                files = read_split_file(self._split_file, self._root, self._class_names)
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{error}; if the data were moved, --config.data.root=FOLDER tells where they "
                    "are"
                ) from None
            return self._with_note_on_new_files(files) if self._workdir else files
        files = self._list_files()
        if files.official_folds and not self.eval_split:
            return files  # Nothing validates.
        return make_split(
            files,
            seed=self.seed,
            validation_share=data.validation_share,
            test_share=data.test_share,
            fold=0 if files.official_folds else data.fold,
            num_folds=data.num_folds,
        )

    def _read_given(self, split_file: Path) -> LabelledFiles | None:
        """Returns the files that an evaluation names; None if they are the run's, moved."""
        data = self.data
        try:
            files = self._list_files()
        except (OSError, ValueError):
            if self._given.list:
                raise
            return None  # The split's file tells what is missing.
        rows = {row.path: row.split for row in read_list(split_file, ())}
        matched = match_names(files.names, list(rows))
        placed = place(matched, files.splits, rows, self._given, f"{self.kind}s")
        if placed.note:
            logger.info("%s: %s", data.list or data.root, placed.note)
        elif all(name in (None, own) for name, own in zip(matched, files.names, strict=True)):
            return None
        number = {name: label for label, name in enumerate(self._class_names)}
        if unknown := sorted(set(files.class_names) - set(number)):
            raise ValueError(
                f"data.root: expected the classes of the run, {', '.join(self._class_names)}, "
                f"received {', '.join(unknown)}"
            )
        files = files.take(placed.positions)
        names = tuple(matched[i] or files.names[k] for k, i in enumerate(placed.positions))
        return dataclasses.replace(
            files,
            names=names,
            labels=tuple(number[files.class_names[label]] for label in files.labels),
            class_names=tuple(self._class_names),
            splits=placed.splits,
        )

    def _list_files(self) -> LabelledFiles:
        data = self.data
        beside = self._given.list and not self._given.root
        if data.dataset == "tfds":
            return self._list_records()
        try:
            if data.dataset in self.published:
                return self.published[data.dataset](data.root, max(data.fold, 1))
            return read_labelled_files(
                "" if beside else data.root,
                kind=self.kind,
                list_file=data.list,
                validation_list=data.validation_list,
                test_list=data.test_list,
                class_list=data.class_list,
                group_pattern=data.group_pattern,
                fold=max(data.fold, 1),
                validation_fold=data.validation_fold,
            )
        except (ValueError, FileNotFoundError) as error:
            if not str(error).startswith(("root:", "list:", "group_pattern:", "fold:")):
                raise
            raise type(error)(f"data.{error}") from error  # The flag, --config.data.root.

    def _list_records(self) -> LabelledFiles:
        data = self.data
        if data.list:
            raise ValueError(
                f"data.list: expected none with data.dataset=tfds, whose records have labels of "
                f"their own, received {data.list}"
            )
        try:
            files = read_labelled_records(data.root, data.tfds, kind=self.kind, cache=data.cache)
        except (ValueError, FileNotFoundError) as error:
            if not str(error).startswith("tfds."):
                raise
            raise type(error)(f"data.{error}") from error  # The flag.
        if not data.group_pattern:
            return files
        raise ValueError(
            "data.group_pattern: expected none with data.dataset=tfds, whose records have no names "
            f"of files, received {data.group_pattern!r}; --config.data.tfds.group=KEY names the "
            "feature with the group"
        )

    def _with_note_on_new_files(self, files: LabelledFiles) -> LabelledFiles:
        """Returns the files of a run that resumes, with a note on those that it leaves out."""
        try:
            new = sorted(set(self._list_files().names) - set(files.names))
        except (OSError, ValueError):  # The list is gone, say; the run does not need it.
            return files
        if not new:
            return files
        note = (
            f"{len(new)} files of the data are not in the split of this run and are left out: "
            f"{some(new)}; a new --workdir splits all anew"
        )
        return dataclasses.replace(files, notes=(*files.notes, note))

    @property
    def _root(self) -> str:
        return self.data.root or os.path.dirname(self.data.list) or "."

    def _require_root(self) -> None:
        if self.data.dataset == "tfds" and not self.data.root:
            raise ValueError(
                "data.root: expected TFDS's folder of data sets; give --config.data.root=FOLDER"
            )
        if not self.data.root and self.data.dataset in self.published:
            raise ValueError(
                f"data.root: expected the folder of {self.data.dataset}, received none; give "
                "--config.data.root=FOLDER"
            )
        if not self.data.root and not self.data.list:
            raise ValueError(
                f"data.root: expected a folder with a folder of {self.kind}s for each class; give "
                "--config.data.root=FOLDER or --config.data.list=FILE"
            )

    def set_fold(self, fold: int) -> None:
        """Selects a fold of a cross-validation, or the lists of UCF101's layout."""
        self.data.fold = fold
        self._files = None

    # ---- What a run keeps --------------------------------------------------------------------

    def describe_data(self, split: str) -> dict[str, Any]:
        """Returns the classes, and digests of the files and labels of a split."""
        if self.embedded:
            return dict(self.make_embedded(split).describe())
        return self.select(split).describe()

    def save_assets(self, folder: Path) -> None:
        """Writes the split of the run."""
        if not self.embedded and self._split_file is None:
            write_split(folder / SPLIT_FILE, self.files)

    def load_assets(self, folder: Path) -> None:
        """Reads the names of a trained model's classes, and finds the split of its run."""
        self._class_names = tuple(Workdir(folder).read_data()["class_names"])
        self._given = find_given(folder, self.data)
        if not self.embedded and (folder / SPLIT_FILE).exists():
            self._split_file, self._files = folder / SPLIT_FILE, None

    def resume_assets(self, folder: Path) -> None:
        """Finds the split of a run that resumes; files that came since are no part of it."""
        self._workdir = folder
        # Without a checkpoint the run starts anew, and so does its split.
        if (folder / "data.json").exists() and any((folder / "checkpoints").glob("[0-9]*")):
            self.load_assets(folder)
            self._given = Given()  # A run that resumes has no other data, wherever they are now.

    # ---- Model -------------------------------------------------------------------------------

    def initial_variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the variables with the pretrained weights of the encoder."""
        if self.caches_features:
            return variables
        return with_encoder_weights(self.model.encoder, variables)

    def frozen_parts(self) -> tuple[str, ...]:
        """Returns ``encoder`` where it is frozen and part of the network."""
        return ("encoder",) if self.model.encoder.frozen and not self.caches_features else ()

    def describe_encoder(self) -> dict[str, Any]:
        """Returns the frozen encoder with the digest of its weights; empty if it is trained."""
        return describe_encoder(self.model.encoder) if self.caches_features else {}

    # ---- Batches -----------------------------------------------------------------------------

    def make_loader(self, source: Any, transform: Any, batch_size: int, split: str = "") -> Loader:
        """Returns the batches of a split, or of files without labels.

        Args:
          source: the records or examples.
          transform: makes an example of a record.
          batch_size: examples in a batch; rounded up to a multiple of the devices.
          split: its name; empty: files without labels.
        """
        train = split == "train"
        devices = jax.device_count()
        return Loader(
            source,
            transform=transform,
            batch_size=-(-batch_size // devices) * devices,
            train=train,
            identity={
                **(self.describe_data(split) if split else {}),
                "preprocessing": self.describe_preprocessing(),
            },
            seed=self.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=self.data.num_threads or None,
            num_workers=self.data.num_workers if train else 0,
            max_bad_share=self.data.max_bad_share if train else 1.0,
        )

    # ---- What was chosen ---------------------------------------------------------------------

    def announce(self) -> None:
        """Logs what was chosen, once and in the first process."""
        if self._announced or self.embedded or jax.process_index():
            return
        self._announced = True
        for line in self.describe_choices():
            logger.info("%s", line)

    def describe_choices(self) -> list[str]:
        """Returns lines that say how the data were read and what is trained."""
        files, data, model = self.files, self.data, self.model
        counts = Counter(files.labels)
        listed = [f"{files.class_names[k]} {counts[k]}" for k in sorted(counts)]
        shown = ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")
        splits = Counter(files.splits)
        by_split = ", ".join(f"{name} {splits[name]}" for name in ("train", "validation", "test"))
        groups = len({group for group in files.groups if group})
        kept = f"; kept in {self._workdir / SPLIT_FILE}" if self._workdir else ""
        encoder = model.encoder
        state = f"frozen, features cached in {data.cache}" if encoder.frozen else "fine-tuned"
        network = model.recurrent
        layer = "none"
        if network.cell != NONE:
            both = " in both directions" if network.bidirectional else ""
            layer = f"{network.cell} of {network.features} units{both}"
        stops = (
            f", stops after {self.patience} without a better {self.best_metric}"
            if self.patience
            else ""
        )
        lines = [
            f"data          {len(files)} {self.kind}s of {len(files.class_names)} classes, "
            f"{files.layout}, in {self._root}",
            f"classes       {shown}",
            f"split         {by_split}{f'; {groups} groups' if groups else ''}{kept}",
            *(f"note          {note}" for note in files.notes),
            f"encoder       {encoder.name} ({encoder.weights or 'random'}), {state}",
            f"recurrent     {layer}; {self.describe_inputs()}",
            f"training      {self.num_steps} steps of {self.batch_size} {self.kind}s at most, "
            f"evaluated every {self.eval_every}{stops}; the best checkpoint counts",
        ]
        if self._workdir:
            where = f"--workdir={shlex.quote(str(self._workdir))}"
            lines += [
                f"afterwards    python -m launch.evaluate {where} --split=test",
                f"              python -m launch.predict {where} FILE",
                f"              python -m launch.report {where} --split=test",
            ]
        return lines

    def describe_inputs(self) -> str:
        """Returns the inputs of the network in words, for the choices."""
        raise UndefinedMethod(self, "describe_inputs")


def configure(config: Any, experiment: str, variant: str | None) -> Any:
    """Returns a configuration of a variant, changed in place: None, or ``smoke``.

    ``smoke`` is a small network on the embedded data, for a few seconds.

    Args:
      config: a ``FileClassification`` for files of one's own.
      experiment: name of the experiment, for the error.
      variant: the variant.

    Raises:
      ValueError: an unknown variant.
    """
    if variant is None:
        return config
    if variant != "smoke":
        raise ValueError(f"{experiment}:{variant}: no such variant{nearest(variant, ('smoke',))}")
    config.batch_size, config.num_steps, config.log_every = 8, 6, 1
    config.eval_every = config.checkpoint_every = 3
    config.optimizer.warmup_steps = 0
    config.data.dataset, config.data.num_examples = "moving_shapes", 20
    config.model.encoder = EncoderConfig("small_cnn", features=(8, 8, 16), strides=(4, 2, 2))
    config.model.recurrent.features = config.model.recurrent.input_features = 8
    return config
