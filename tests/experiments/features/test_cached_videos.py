"""LRCN on cached features of a frozen encoder: whole videos, and the clips cut from them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.video.decoding import decode
from experiments.classification.video_clips import ClipsConfig
from experiments.features.frozen_features import make_encode
from flaxnets.training.config import rehearsal
from tests.data.video_files import truncate, write_video
from tests.experiments import grid

# ml_collections loads the file of an experiment by a deprecated function.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

NUM_FRAMES = ClipsConfig.num_frames
CLASSES = ("Archery", "Bowling")
NUM_VIDEO_FRAMES = 20
SIZE, CROP = (48, 64), 32
MAP_SHAPE, POOLED_SHAPE = (4, 4, 8), (8,)
"""Feature maps (h,w,D) of crops of 32² after strides of 4 and 2, and their mean over space."""

Configure = Callable[..., Any]


def file_name(class_name: str, group: int) -> str:
    return f"{class_name}/v_{class_name}_g{group:02d}_c01.avi"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UCF101 in small: 2 classes in 4 groups; the test video of the last class is truncated."""
    root = tmp_path_factory.mktemp("ucf101")
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    original = write_video(root / "original.avi", NUM_VIDEO_FRAMES, size=SIZE).read_bytes()
    train, test = [], []
    for label, class_name in enumerate(CLASSES, start=1):
        for group in range(1, 5):
            name = file_name(class_name, group)
            path = root / "UCF-101" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(original)
            test.append(name) if group == 1 else train.append(f"{name} {label}")
    truncate(root / "UCF-101" / file_name(CLASSES[-1], 1), 9, more=10)
    (lists / "classInd.txt").write_text("1 Archery\n2 Bowling\n")
    (lists / "trainlist01.txt").write_text("\n".join(train) + "\n")
    (lists / "testlist01.txt").write_text("\n".join(test) + "\n")
    return root


@pytest.fixture(scope="module")
def configure(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Configure:
    """Returns LRCN's configuration from flags, with one cache for all tests."""
    cache = tmp_path_factory.mktemp("cache")

    def configured(*given: str) -> Any:
        return grid.parse(
            "lrcn_ucf101.py",
            f"--config.data.root={root}",
            f"--config.data.cache={cache}",
            "--config.data.validation_groups=('02',)",
            f"--config.data.frame_size={SIZE}",
            f"--config.data.crop_size={CROP}",
            "--config.data.test_clips=3",
            "--config.batch_size=8",
            "--config.model.encoder.name=small_cnn",
            "--config.model.encoder.weights=",
            "--config.model.encoder.frozen=True",
            "--config.model.encoder.features=(4,8)",
            "--config.model.encoder.strides=(4,2)",
            *given,
        )

    return configured


CELLS = {"lstm": POOLED_SHAPE, "convgru": MAP_SHAPE}


def cell_flags(cell: str) -> tuple[str, ...]:
    return (f"--config.model.recurrent.cell={cell}", "--config.model.recurrent.features=4")


def batches_of(data: Any) -> list[Mapping[str, np.ndarray]]:
    with data.batches() as batches:
        return list(batches)


def encoded_views(config: Any, path: Path) -> np.ndarray:
    """Returns the encoder's feature maps of a video's frames, (2,T,h,w,D), plain and mirrored."""
    frames = decode(str(path), np.arange(NUM_VIDEO_FRAMES), short_side=SIZE[0])
    top, left = (SIZE[0] - CROP) // 2, (SIZE[1] - CROP) // 2
    crop = frames[:, top : top + CROP, left : left + CROP]
    encode = make_encode(config.model.encoder, "none")
    return np.stack([encode(crop), encode(crop[:, :, ::-1])])


@pytest.mark.parametrize("cell", CELLS)
def test_clips_at_test_are_the_encoders_features_of_decoded_frames(
    configure: Configure, root: Path, cell: str
) -> None:
    config = configure(*cell_flags(cell))
    assert config.caches_features
    (first, *_) = batches_of(config.make_data("test"))
    # 3 clips of the plain and of the mirrored video, and rows that pad the batch for the devices.
    assert first["features"].shape[1:] == (3 * 2, NUM_FRAMES, *CELLS[cell])
    assert first["features"].dtype == np.float16
    assert first["lengths"].shape[1:] == (3 * 2,)
    assert (first["lengths"][0] == NUM_FRAMES).all()
    assert (first["label"][0], first["index"][0]) == (0, 0)
    assert first["mask"][:2].tolist() == [True, False]

    views = encoded_views(config, root / "UCF-101" / file_name(CLASSES[0], 1))
    if cell == "lstm":
        views = views.mean((2, 3))
    # 20 frames hold 5 clips of 16 at a distance of one frame: the first, the middle, the last.
    expected = [view[start : start + NUM_FRAMES] for start in (0, 2, 4) for view in views]
    np.testing.assert_allclose(first["features"][0], expected, rtol=2e-3, atol=2e-3)
    assert np.abs(views[0] - views[1]).max() > 0.01


def test_an_unreadable_video_is_masked(configure: Configure) -> None:
    config = configure(*cell_flags("lstm"))
    data = config.make_data("test")
    (batch, *_) = batches_of(data)
    assert batch["mask"].tolist() == [True] + [False] * (len(batch["mask"]) - 1)
    assert (batch["index"][1], batch["label"][1]) == (1, -1)
    assert not batch["features"][1].any()
    assert list(data.bad) == [1]
    assert "truncated" in data.bad[1]


@pytest.mark.parametrize("cell", CELLS)
def test_training_clips_are_cut_from_both_views(
    configure: Configure, root: Path, cell: str
) -> None:
    config = configure(*cell_flags(cell))
    views = encoded_views(config, root / "UCF-101" / file_name(CLASSES[0], 2))
    if cell == "lstm":
        views = views.mean((2, 3))
    starts: set[tuple[int, int]] = set()
    with config.make_data("train").batches() as batches:
        for _ in range(3):
            batch = next(batches)
            assert batch.keys() == {"features", "lengths", "label", "mask", "index"}
            assert batch["features"].shape == (8, NUM_FRAMES, *CELLS[cell])
            assert batch["features"].dtype == np.float16
            assert batch["mask"].all()
            for name in ("lengths", "label", "index"):
                assert (batch[name].shape, batch[name].dtype) == ((8,), np.int32)
            assert (batch["lengths"] == NUM_FRAMES).all()
            assert set(batch["label"]) <= {0, 1}
            # All files hold the same video.
            for clip in batch["features"]:
                distances = {
                    (view, start): np.abs(views[view, start : start + NUM_FRAMES] - clip).max()
                    for view in (0, 1)
                    for start in range(NUM_VIDEO_FRAMES - NUM_FRAMES + 1)
                }
                nearest = min(distances, key=distances.__getitem__)
                assert distances[nearest] < 5e-3
                starts.add(nearest)
    assert {view for view, _ in starts} == {0, 1}
    assert len({start for _, start in starts}) > 1


@pytest.mark.parametrize("cell", CELLS)
def test_predictions_see_what_the_test_sees(configure: Configure, root: Path, cell: str) -> None:
    config = configure(*cell_flags(cell))
    paths = [str(root / "UCF-101" / file_name(name, 1)) for name in CLASSES]
    (tested, *_) = batches_of(config.make_data("test"))
    (predicted, *_) = batches_of(config.make_prediction_data(paths))
    for name in ("lengths", "mask", "index"):
        np.testing.assert_array_equal(predicted[name], tested[name])
    assert predicted["features"].shape == tested["features"].shape
    np.testing.assert_allclose(
        predicted["features"][0], tested["features"][0], rtol=2e-3, atol=2e-3
    )
    assert (predicted["label"] == -1).all()


@pytest.mark.parametrize("cell", CELLS)
def test_the_network_trains_on_cached_features(configure: Configure, cell: str) -> None:
    config = configure(*cell_flags(cell))
    losses, moved = grid.train_two_steps(config, grid.first_batch(config))
    assert np.isfinite(losses).all()
    assert "encoder" not in moved


@pytest.mark.parametrize("cell", CELLS)
def test_stand_ins_have_the_shapes_of_the_encoded_videos(
    configure: Configure, cell: str, tmp_path: Path
) -> None:
    config = configure(*cell_flags(cell), f"--config.data.cache={tmp_path / 'new'}")
    with rehearsal() as expensive:
        stood_in = [next(iter(config.make_data(split).batches())) for split in ("train", "test")]
    assert expensive
    assert not (tmp_path / "new").exists()  # Nothing was encoded.
    encoded = [
        next(iter(configure(*cell_flags(cell)).make_data(split).batches()))
        for split in ("train", "test")
    ]
    for there, expected in zip(stood_in, encoded, strict=True):
        shapes = {name: (x.shape, x.dtype) for name, x in expected.items()}
        assert {name: (x.shape, x.dtype) for name, x in there.items()} == shapes
