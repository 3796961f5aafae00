"""Data sets that TFDS has prepared, read without TensorFlow by a description of their keys.

Any builder with videos, images, captions or sequences is read from its ArrayRecord files: which
feature is the video or the label is said by a ``TfdsConfig``. The preparation of most builders
needs TensorFlow once, in an environment of its own, and on any machine::

    python -m venv tfds && tfds/bin/pip install tensorflow-cpu tensorflow-datasets array_record
    tfds/bin/python -c "import tensorflow_datasets as tfds; tfds.builder('ucf101/ucf101_1', \
data_dir='DIR').download_and_prepare(file_format='array_record')"

Videos are TFDS's ``Video`` or ``Sequence(Image)``, whose frames are stored as JPEG or PNG,
``Tensor`` (T,H,W,C) of uint8, or a scalar with the bytes of a video file; images are ``Image`` or
``Tensor`` (H,W,C) of uint8; sequences ``Tensor`` (T,D) or (T,), or a ``Sequence`` of such rows.
"""

import difflib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.batches import UNKNOWN_LABEL
from data.datasets.captioned_images import CaptionedImages
from data.datasets.image_captions import ImageCaptions
from data.datasets.labelled_files import LabelledFiles
from data.datasets.list_file import SPLIT_NAMES, some
from data.files import normal_name, read_packed, tfds_features, tfds_values, write_atomically
from data.loader import available_cpus
from data.series.sequences import LabelledSequences

STOCK = {
    "ucf101/ucf101_1": "video, label; 13,320 videos of 101 actions, lists 1 (also _2, _3)",
    "moving_mnist": "image_sequence; 10,000 test sequences of two digits, no labels",
    "coco_captions": "image, captions/text, image/id; COCO 2014 in Karpathy's splits",
    "smartwatch_gestures": "features/accel_x, _y, _z; gesture; 20 gestures, a training split alone",
}
"""Stock builders of TFDS 4.9.10 that need TensorFlow to be prepared, with their keys."""


@dataclass
class TfdsConfig:
    """Builder of a data set that TFDS has prepared, and the keys of its features."""

    builder: str = ""
    """``NAME``, ``NAME/CONFIG`` or ``NAME/CONFIG:VERSION`` in the folder ``data.root``; without a
    version the newest. Empty: ``data.root`` is the folder of a version."""
    video: str = "video"
    """Key of the videos, for video classification; "/" between nested keys."""
    image: str = "image"
    """Key of the images, for image classification and captions."""
    captions: str = "captions/text"
    """Key of the captions, for image captioning."""
    image_id: str = ""
    """Key of an image's number or name, for image captioning; empty: its place in the files."""
    sequence: tuple[str, ...] = ("sequence",)
    """Keys of the sequences, for series; several are channels side by side."""
    label: str = "label"
    """Key of the class: a ``ClassLabel``, an integer or a text."""
    group: str = ""
    """Key of the recording group; empty: none."""


@dataclass(frozen=True)
class _Prepared:
    """A prepared data set.

    Attributes:
        folder: of its version.
        name: builder, configuration and version, as "ucf101/ucf101_1/2.0.0".
        features: of TFDS.
        shards: of each split, the files and their numbers of records.
    """

    folder: Path
    name: str
    features: Any
    shards: Mapping[str, list[tuple[Path, int]]]


def prepare_command(builder: str, data_dir: str | os.PathLike[str]) -> str:
    """Returns the command that prepares a builder in files that are read without TensorFlow."""
    return (
        'python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{builder or 'NAME'}', data_dir='{data_dir}')"
        ".download_and_prepare(file_format='array_record')\""
    )


def read_labelled_records(
    data_dir: str | os.PathLike[str],
    keys: TfdsConfig,
    *,
    kind: str = "video",
    cache: str | os.PathLike[str] = "",
) -> LabelledFiles:
    """Reads the labels of all records, once, and names their videos or images.

    Args:
        data_dir: TFDS's folder of data sets, or the folder of a version.
        keys: the builder and its keys.
        kind: "video" or "image".
        cache: folder in which the labels are kept, so that another run need not read all records;
            empty: they are not.

    Returns:
        The videos or images by the paths of their records, which ``data.video.decode`` and
        ``data.captions.images.read_image`` read; in TFDS's order, under its splits. Other splits
        than train, validation and test are left out, with a note.

    Raises:
        FileNotFoundError: nothing prepared there, or not all of its files.
        ValueError: another version or format of files, no such key, a key of another kind, fewer
            than two classes, or no training split.
    """
    media = {"video": keys.video, "image": keys.image}
    if kind not in media:
        raise ValueError(f"kind: expected {' or '.join(media)}, received {kind!r}")
    found = _find(Path(data_dir), keys.builder)
    _require(found, media[kind], kind, _IS[kind])
    label = _require(found, keys.label, "label", _is_label)
    group = keys.group and _require(found, keys.group, "group", _is_label)
    shards, notes = _splits(found)
    rows = _read_rows(found, shards, [name for name in (keys.label, keys.group) if name], cache)
    named = getattr(label, "names", None)
    classes = [_text(row[0], named) for row in rows]
    class_names = tuple(named) if named else tuple(sorted(set(classes), key=_natural))
    _check_classes(found, keys.label, set(classes))
    number = {name: index for index, name in enumerate(class_names)}
    if unknown := sorted(set(classes) - set(class_names)):
        raise ValueError(
            f"tfds.label: expected a class of each record, received {some(unknown)} at the key "
            f"{keys.label!r} of {found.name}"
        )
    places = [
        (split, path / str(row) / media[kind])
        for split, path, count in shards
        for row in range(count)
    ]
    return LabelledFiles(
        paths=tuple(str(path) for _, path in places),
        labels=tuple(number[name] for name in classes),
        groups=tuple(_text(row[1], getattr(group, "names", None)) if group else "" for row in rows),
        splits=tuple(split for split, _ in places),
        class_names=class_names,
        names=tuple(_relative(path, Path(data_dir)) for _, path in places),
        layout=f"TFDS's {found.name}",
        notes=notes,
    )


def read_captioned_records(
    data_dir: str | os.PathLike[str], keys: TfdsConfig, *, cache: str | os.PathLike[str] = ""
) -> ImageCaptions:
    """Reads the captions of all records, once, and names their images.

    Arguments and errors are those of ``read_labelled_records``.
    """
    found = _find(Path(data_dir), keys.builder)
    _require(found, keys.image, "image", _is_image)
    _require(found, keys.captions, "captions", _is_text)
    if keys.image_id:
        _require(found, keys.image_id, "image_id", _is_label)
    shards, notes = _splits(found)
    names = [name for name in (keys.captions, keys.image_id) if name]
    rows = _read_rows(found, shards, names, cache)
    places = [
        (split, path / str(row) / keys.image)
        for split, path, count in shards
        for row in range(count)
    ]
    relative = [_relative(path, Path(data_dir)) for _, path in places]
    texts = [
        tuple(text for text in (one.strip() for one in _texts(row[0])) if text) for row in rows
    ]
    kept = [index for index, captions in enumerate(texts) if captions]
    if not kept:
        raise ValueError(f"tfds.captions: expected captions at the key {keys.captions!r}, none")
    ids = [row[1] if keys.image_id else name for row, name in zip(rows, relative, strict=True)]
    return ImageCaptions(
        CaptionedImages(
            tuple(str(places[i][1]) for i in kept),
            tuple(texts[i] for i in kept),
            tuple(ids[i] for i in kept),
        ),
        tuple(relative[i] for i in kept),
        tuple(places[i][0] for i in kept),
        f"TFDS's {found.name}",
        str(found.folder),
        uncaptioned=tuple(relative[i] for i, captions in enumerate(texts) if not captions),
        notes=notes,
    )


def read_sequence_records(
    data_dir: str | os.PathLike[str], keys: TfdsConfig
) -> dict[str, LabelledSequences]:
    """Reads the sequences into memory, by ``train``, ``validation`` and ``test``.

    Args:
        data_dir: TFDS's folder of data sets, or the folder of a version.
        keys: the builder and its keys.

    Returns:
        The splits that there are, of equal class names. Other splits are left out, with a note.

    Raises:
        FileNotFoundError: nothing prepared there, or not all of its files.
        ValueError: another version or format of files, no such key, values that are no numbers, or
            no training split.
    """
    found = _find(Path(data_dir), keys.builder)
    for key in keys.sequence or ("",):
        _require(found, key, "sequence", _is_sequence)
    label = _require(found, keys.label, "label", _is_label)
    shards, notes = _splits(found)
    named = getattr(label, "names", None)
    values: dict[str, list[np.ndarray]] = {}
    classes: dict[str, list[str]] = {}
    for split, path, count in shards:
        for row in range(count):
            place = path / str(row) / keys.sequence[0]
            *read, of_class = tfds_values(
                read_packed(place), found.folder, [*keys.sequence, keys.label]
            )
            values.setdefault(split, []).append(_side_by_side(place, keys.sequence, read))
            classes.setdefault(split, []).append(_text(_plain(of_class), named))
    there = {name for of_split in classes.values() for name in of_split}
    class_names = tuple(named) if named else tuple(sorted(there, key=_natural))
    number = {name: index for index, name in enumerate(class_names)}
    _check_classes(found, keys.label, there & set(class_names))
    return {
        split: LabelledSequences(
            tuple(values[split]),
            # TFDS has -1 where a split has no labels.
            np.asarray([number.get(name, UNKNOWN_LABEL) for name in of_split], np.int32),
            class_names,
            name=found.name,
            notes=notes,
        )
        for split, of_split in classes.items()
    }


# ---- The folder ------------------------------------------------------------------------------


def _find(data_dir: Path, builder: str) -> _Prepared:
    """Returns the prepared version of a builder; opens no record."""
    folder = _version_folder(data_dir, builder)
    from data.datasets.coco_captions_tfds import check_features

    check_features(folder / "features.json")
    info = _read_info(folder)
    name, version = str(info.get("name", "")), str(info.get("version", ""))
    config = str(info.get("configName", "") or "")
    if version != folder.name:
        raise ValueError(
            f"{folder}: expected version {folder.name}, as the folder is called, received files of "
            f"version {version or 'unknown'}; prepare it again with "
            f"{prepare_command(builder or name, data_dir)}"
        )
    of_files = str(info.get("fileFormat", "") or "tfrecord")
    if of_files != "array_record":
        raise ValueError(
            f"{folder}: expected array_record files, which are read without TensorFlow, received "
            f"{of_files}; prepare them with "
            f"{prepare_command('/'.join(filter(None, (name, config))), data_dir)}"
        )
    shards = {}
    for split in info.get("splits", ()):
        counts = [int(count) for count in split.get("shardLengths", ())]
        template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        files = []
        for number, count in enumerate(counts):
            filled = template
            for field, value in (
                ("DATASET", name),
                ("SPLIT", split["name"]),
                ("FILEFORMAT", of_files),
                ("SHARD_X_OF_Y", f"{number:05d}-of-{len(counts):05d}"),
            ):
                filled = filled.replace(f"{{{field}}}", value)
            files.append((folder / filled, count))
        shards[str(split["name"])] = files
    missing = [path.name for files in shards.values() for path, _ in files if not path.is_file()]
    if missing or not shards:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of its files are missing: {some(missing)}; prepare it with "
            f"{prepare_command(builder or name, data_dir)}"
        )
    full = "/".join(filter(None, (name, config, version)))
    features, _ = tfds_features(str(folder))
    return _Prepared(folder, full, features, shards)


def _version_folder(data_dir: Path, builder: str) -> Path:
    if not builder:
        if (data_dir / "features.json").is_file():
            return data_dir
        there = sorted({p.parent.relative_to(data_dir).parts[0] for p in _versions(data_dir)})
        raise ValueError(
            "tfds.builder: expected the name of a data set that is prepared in "
            f"{data_dir}, received none; there are: {some(there) or 'none'}"
        )
    named, _, version = builder.partition(":")
    base = data_dir / named
    below = _versions(base) if base.is_dir() else []
    folders = [p.parent for p in below]
    if not folders:
        there = sorted({p.parent.relative_to(data_dir).parts[0] for p in _versions(data_dir)})
        raise FileNotFoundError(
            f"tfds.builder: expected {builder}, prepared by TFDS in {base}, received "
            f"{some(there) or 'no prepared data set'} in {data_dir}"
            f"{_nearest(named.split('/')[0], there)}; prepare it with "
            f"{prepare_command(builder, data_dir)}"
        )
    configs = sorted({str(p.parent.relative_to(data_dir)) for p in folders})
    if len(configs) > 1:
        raise ValueError(
            f"tfds.builder: expected one of {', '.join(configs)}, received {named}, of which "
            "several are prepared"
        )
    if not version:
        return max(folders, key=lambda path: _natural(path.name))
    for folder in folders:
        if folder.name == version:
            return folder
    raise ValueError(
        f"tfds.builder: expected a version that is prepared, "
        f"{', '.join(sorted((p.name for p in folders), key=_natural))}, received {version}; "
        f"prepare it with {prepare_command(builder, data_dir)}"
    )


def _versions(base: Path) -> list[Path]:
    """Returns the descriptions of the features of all versions in and below a folder."""
    if not base.is_dir():
        return []
    forms = ("features.json", "*/features.json", "*/*/features.json", "*/*/*/features.json")
    return [path for form in forms for path in base.glob(form)]


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / "dataset_info.json"
    try:
        info = json.loads(path.read_bytes())
        if isinstance(info, dict):
            return info
        reason = "no JSON object"
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise ValueError(
        f"{path}: expected TFDS's description of a prepared data set ({reason}); prepare it again"
    )


def _splits(found: _Prepared) -> tuple[list[tuple[str, Path, int]], tuple[str, ...]]:
    """Returns split, file and number of records of each shard, and a note on other splits."""
    shards, others = [], []
    for name, files in found.shards.items():
        if (split := SPLIT_NAMES.get(name.lower(), "")) and files:
            shards += [(split, path, count) for path, count in files]
        else:
            others.append(name)
    if not any(split == "train" for split, _, _ in shards):
        raise ValueError(
            f"tfds.builder: expected a split train, received those of {found.name}: "
            f"{', '.join(found.shards)}"
        )
    return shards, (f"the splits {', '.join(others)} were left out",) if others else ()


def _relative(path: Path, data_dir: Path) -> str:
    return normal_name(path.relative_to(data_dir).as_posix())


# ---- Features --------------------------------------------------------------------------------


def _require(found: _Prepared, key: str, what: str, fits: Callable[[Any], bool]) -> Any:
    """Returns the feature of a key, which must be of a kind."""
    keys = dict(_flat("", found.features))
    if key not in keys:
        raise ValueError(
            f"tfds.{what}: expected a key of {found.name}, {', '.join(sorted(keys))}, received "
            f"{key!r}{_nearest(key, [*keys])}"
        )
    if not fits(keys[key]):
        others = sorted(name for name, feature in keys.items() if fits(feature))
        raise ValueError(
            f"tfds.{what}: expected a key of {found.name} with {_FORMS[what]}, "
            f"{'such as ' + some(others) if others else 'of which there are none'}, received "
            f"{key!r}, {_describe(keys[key])}"
        )
    return keys[key]


def _flat(prefix: str, feature: Any, repeated: bool = False) -> list[tuple[str, Any]]:
    """Returns the features of nested dictionaries by key; of sequences of them, as sequences."""
    import tensorflow_datasets as tfds

    inner = feature
    if type(feature) is tfds.features.Sequence and isinstance(
        feature.feature, tfds.features.FeaturesDict
    ):
        inner, repeated = feature.feature, True
    if isinstance(inner, tfds.features.FeaturesDict):
        start = f"{prefix}/" if prefix else ""
        return [pair for name in inner for pair in _flat(f"{start}{name}", inner[name], repeated)]
    return [(prefix, tfds.features.Sequence(feature) if repeated else feature)]


def _is_video(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Sequence):  # A Video, too, is read as one.
        return isinstance(feature.feature, tfds.features.Image)
    shape, dtype = feature.shape, feature.np_dtype
    if len(shape) == 4:
        return dtype == np.uint8 and shape[-1] in (1, 3)
    return shape == () and _is_bytes(feature)


def _is_image(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return True
    return (
        isinstance(feature, tfds.features.Tensor)
        and len(feature.shape) == 3
        and feature.np_dtype == np.uint8
        and feature.shape[-1] in (1, 3)
    )


def _is_bytes(feature: Any) -> bool:
    return np.dtype(feature.np_dtype).kind in "OSU"


def _is_text(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Sequence):
        feature = feature.feature
    return isinstance(feature, tfds.features.Tensor) and _is_bytes(feature)


def _is_label(feature: Any) -> bool:
    if feature.shape != () or isinstance(feature.np_dtype, dict):
        return False
    return np.dtype(feature.np_dtype).kind in "iuOSU"


def _is_sequence(feature: Any) -> bool:
    if isinstance(feature.np_dtype, dict):
        return False
    return len(feature.shape) in (1, 2) and np.dtype(feature.np_dtype).kind in "fiu"


_IS: Mapping[str, Callable[[Any], bool]] = {"video": _is_video, "image": _is_image}
_FORMS = {
    "video": "frames (Video, a Sequence of Image, or a Tensor (T,H,W,C) of uint8) or video files",
    "image": "an Image, or a Tensor (H,W,C) of uint8",
    "captions": "texts",
    "image_id": "a number or a text",
    "label": "one class",
    "group": "one number or text",
    "sequence": "numbers, (T,) or (T,D)",
}


def _describe(feature: Any) -> str:
    return " ".join(repr(feature).split())[:80]


# ---- Records ---------------------------------------------------------------------------------


def _read_rows(
    found: _Prepared,
    shards: list[tuple[str, Path, int]],
    keys: list[str],
    cache: str | os.PathLike[str],
) -> list[list[Any]]:
    """Returns the values of small keys of all records; reads all of each record, once."""
    state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for _, path, _ in shards]
    digest = hashlib.sha256(json.dumps([found.name, state, keys]).encode()).hexdigest()[:24]
    kept = Path(cache, f"tfds-{digest}.json") if str(cache) else None
    if kept is not None and kept.is_file():
        rows: list[list[Any]] = json.loads(kept.read_bytes())
        return rows

    def read(place: Path) -> list[Any]:
        return [_plain(value) for value in tfds_values(read_packed(place), found.folder, keys)]

    places = [path / str(row) / keys[0] for _, path, count in shards for row in range(count)]
    with ThreadPoolExecutor(min(available_cpus() + 1, 16)) as executor:
        rows = list(executor.map(read, places))
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(rows)
        write_atomically(kept, lambda path: path.write_text(text, encoding="utf-8"))
    return rows


def _plain(value: Any) -> Any:
    """Returns a value as JSON holds it; bytes become text."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _check_classes(found: _Prepared, key: str, classes: set[str]) -> None:
    if len(classes) < 2:
        raise ValueError(
            f"tfds.label: expected at least two classes, received {len(classes)} at the key "
            f"{key!r} of {found.name}"
        )


def _side_by_side(place: Path, keys: Sequence[str], read: Sequence[Any]) -> np.ndarray:
    """Returns the sequences (T,) or (T,D) of one record as channels, (T,·) float32."""
    arrays = [np.asarray(values, np.float32) for values in read]
    lengths = [len(array) for array in arrays]
    if len(set(lengths)) > 1 or not min(lengths):
        found = ", ".join(f"{n} of {key!r}" for key, n in zip(keys, lengths, strict=True))
        raise ValueError(
            f"tfds.sequence: expected as many steps of each key, at least one, received {found} in "
            f"record {place.parents[len(Path(keys[0]).parts) - 1]}"
        )
    return np.concatenate([a[:, None] if a.ndim == 1 else a for a in arrays], axis=1)


def _texts(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(one) for one in value]


def _text(value: Any, names: Any) -> str:
    return str(names[value] if names and isinstance(value, int) and value >= 0 else value)


def _natural(text: str) -> tuple[tuple[int, str], ...]:
    """Returns a key that sorts numbers in texts by their value."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in text.split("."))


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""
