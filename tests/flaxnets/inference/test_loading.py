"""Loading of trained models: equal to the run's own predictions, from folders of any dtype."""

import doctest
import json
import os
import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import flaxnets
from flaxnets.configuration import describe_part
from flaxnets.inference import MediaError, ModelError, TrainedCaptioner, TrainedModel, save_model
from flaxnets.inference.store import read_variables, save_run
from flaxnets.training.loop import train
from flaxnets.training.workdir import Workdir
from launch.program import config_of, load_experiment, load_model
from tests.data.video_files import write_video
from tests.experiments import grid
from tests.launch import captioners
from tests.launch.test_moved_data import EXPERIMENT, configure, run, write_data

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of three videos, one of them shorter than a clip."""
    folder = tmp_path_factory.mktemp("clips")
    lengths = (21, 9, 18)
    return [str(write_video(folder / f"{n}.avi", n, size=(48, 64))) for n in lengths]


VARIANTS = {
    "decoded": (),
    "frozen": ("--config.model.encoder.frozen=True", "--config.data.test_clips=2"),
    "crops": ("--config.data.test_crops=10", "--config.data.test_clips=2"),
    "corners": ("--config.data.test_crops=5", "--config.data.flip=False"),
    "attention": ("--config.model.head.pool=attention",),
}


@pytest.fixture(scope="module", params=[*VARIANTS])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Workdir of LRCN, trained for two steps on data that then are gone."""
    folder = tmp_path_factory.mktemp(request.param)
    data, cache = write_data(folder / "data"), f"--config.data.cache={folder / 'cache'}"
    run(folder / "run", configure(data, cache, *VARIANTS[request.param]))
    os.rename(data, folder / "moved")
    return folder / "run"


def own_predictions(workdir: Path, paths: list[str]) -> np.ndarray:
    model = TrainedModel(config_of(Workdir(workdir)), Workdir(workdir))
    return np.array([record["probabilities"] for record in model.predict(paths)])


@pytest.mark.slow
def test_a_workdir_predicts_as_its_experiment_does(trained: Path, clips: list[str]) -> None:
    model: Any = flaxnets.load(trained)
    found = model.predict(clips)
    expected = own_predictions(trained, clips)
    np.testing.assert_allclose([p.probabilities for p in found], expected, atol=1e-5)
    assert (model.kind, model.labels) == ("video_classification", ("Wave", "Clap", "Kick"))
    alone = model.predict(clips[1])
    np.testing.assert_allclose(alone.probabilities, found[1].probabilities, atol=1e-6)
    if alone.times is not None:
        assert len(alone.times) == len(alone.step_probabilities) == 9
        np.testing.assert_allclose(alone.step_probabilities.sum(-1), 1, atol=1e-5)


@pytest.mark.slow_after(5)
@pytest.mark.parametrize(("dtype", "within"), [("float32", 0), ("float16", 1e-3), ("int8", 0.05)])
def test_a_stored_run_predicts_as_its_workdir(
    trained: Path, clips: list[str], dtype: str, within: float, tmp_path: Path
) -> None:
    size = save_run(Workdir(trained), tmp_path / "model", dtype=dtype, card="# Card\n")
    assert size == sum(path.stat().st_size for path in (tmp_path / "model").iterdir())
    stored: Any = flaxnets.load(tmp_path / "model")
    model: Any = flaxnets.load(trained)
    assert stored.card == "# Card\n"
    difference = stored.predict(clips[0]).probabilities - model.predict(clips[0]).probabilities
    assert np.abs(difference).max() <= within


def test_unreadable_files_are_told_in_their_places(trained: Path, clips: list[str]) -> None:
    model: Any = flaxnets.load(trained)
    paths = [clips[0], __file__, "/absent.mp4", clips[1]]
    found = list(model.predict_each(paths))
    assert [type(item).__name__ for item in found[1:3]] == ["MediaError", "FileNotFoundError"]
    assert found[0].label == model.predict(clips[0]).label
    with pytest.raises(MediaError, match=r"test_loading\.py: not a readable video"):
        model.predict(paths[:2])


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Workdir of an untrained captioner behind ResNet-18 of random weights, and four images."""
    folder = tmp_path_factory.mktemp("captions")
    root = captioners.make_flickr8k(folder / "flickr8k")
    config = captioners.make_config(root)
    config.model.encoder.name, config.model.encoder.weights = "small_cnn", ""
    config.model.encoder.features, config.model.encoder.strides = (4, 1280), (8, 4)
    captioners.make_run(folder / "run", config)
    return folder / "run", sorted(map(str, (root / "Flicker8k_Dataset").glob("*.jpg")))[:4]


@pytest.mark.slow
@pytest.mark.parametrize("stored", [False, True])
def test_a_captioner_captions_as_its_experiment_does(
    captioner: tuple[Path, list[str]], stored: bool, tmp_path: Path
) -> None:
    workdir, images = captioner
    trained = TrainedModel(config_of(Workdir(workdir)), Workdir(workdir))
    expected = list(TrainedCaptioner([trained]).caption_files(images, attention=True))
    if stored:
        save_run(Workdir(workdir), tmp_path / "model")
    model: Any = flaxnets.load(tmp_path / "model" if stored else workdir)
    found = model.caption(images, num_captions=3, attention=True)
    for captions, wanted in zip(found, expected, strict=True):
        assert [c.text for c in captions] == [c.text for c in wanted.captions]
        assert [c.words for c in captions] == [c.words for c in wanted.captions]
        for caption, other in zip(captions, wanted.captions, strict=True):
            assert caption.log_probability == pytest.approx(other.log_probability, abs=1e-4)
            assert caption.ended == other.ended
            np.testing.assert_allclose(caption.attention, other.attention, atol=1e-4)
    # One image alone, one caption, without attention.
    (best,) = model.caption(np.asarray(Image.open(images[0])))
    assert best.text == found[0][0].text
    assert best.attention is None


def test_more_captions_than_the_beam_are_found_by_a_wider_one(
    captioner: tuple[Path, list[str]],
) -> None:
    model: Any = flaxnets.load(captioner[0])
    assert len(model.caption(captioner[1][0], num_captions=5)) == 5
    with pytest.raises(ValueError, match="num_captions: expected at least 1"):
        model.caption(captioner[1][0], num_captions=0)


def make_folder(folder: Path, **changes: Any) -> Path:
    network = flaxnets.CRNN(flaxnets.StepClassifier(2), flaxnets.SmallCNN((4,), (4,)))
    video = np.zeros((1, 4, 16, 16, 3), np.uint8)
    variables = network.init(jax.random.key(0), video, np.array([4]), train=False)
    described = {
        "format": 1,
        "kind": "video_classification",
        "name": "toy",
        "labels": ["wave", "walk"],
        "network": describe_part(network),
        "averaging": "clip",
        "preprocessing": {"kind": "clip", "num_frames": 4, "size": [16, 16]},
    }
    save_model(folder, described | changes, variables)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "expected format 1, received 2; load it with the version"),
        ({"kind": "speech"}, "expected a kind of video_classification"),
        ({"network": {"name": "os:system"}}, "code from outside of flaxnets"),
        ({"network": 3}, "network: expected a JSON object, received 3"),
        ({"network": {"tuple": []}}, "network: expected a Linen module, received tuple"),
        ({"name": None}, "name: expected a JSON string, received None"),
        ({"labels": "wave"}, "labels: expected a JSON array, received 'wave'"),
        ({"labels": [["wave"], 1]}, "labels: expected names of classes"),
        ({"labels": ["wave", "walk", "sit"]}, "labels: expected 2 names, as many as the network"),
        ({"encoder": [1]}, "encoder: expected a JSON object"),
        ({"averaging": 5}, "averaging: expected a JSON string"),
        ({"preprocessing": []}, "preprocessing: expected a JSON object"),
        ({"preprocessing": {"kind": ["clip"]}}, "preprocessing: expected one of image, clip"),
        ({"preprocessing": {"kind": "clip"}}, "missing 2 required positional arguments"),
        ({"averaging": "median"}, "loss_kind: expected"),
    ],
)
def test_folders_that_hold_no_model_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        flaxnets.load(make_folder(tmp_path / "model", **changes))


@pytest.mark.parametrize(
    "setting",
    [
        {"num_frames": 0},
        {"num_frames": 10**9},
        {"num_frames": "4"},
        {"num_frames": True},
        {"size": 16},
        {"size": [0, 16]},
        {"size": [10**6, 10**6]},
        {"num_frames": 4000, "size": [2000, 2000]},
        {"rate": 0},
        {"scale": float("nan")},
        {"keep_aspect": "no"},
        {"short_side": -1},
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], tmp_path: Path) -> None:
    given = {"kind": "clip", "num_frames": 4, "size": [16, 16]} | setting
    with pytest.raises(ValueError, match="preprocessing: "):
        flaxnets.load(make_folder(tmp_path / "model", preprocessing=given))


@pytest.mark.parametrize("how", ["missing", "shape", "nan", "tree"])
def test_variables_that_do_not_fit_are_refused(how: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    path = folder / "variables.safetensors"
    tensors = safetensors.numpy.load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith("kernel"))
    message = "do not fit its network"
    if how == "missing":
        del tensors[name]
    elif how == "shape":
        tensors[name] = np.zeros((7,), np.float32)
    elif how == "nan":
        tensors[name] = np.full_like(tensors[name], np.nan)
        message = "expected finite variables"
    else:
        tensors[f"{name}.part"] = np.zeros((7,), np.float32)
        message = "variables"
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(ModelError, match=message):
        flaxnets.load(folder)


def test_wrong_sources_are_told(tmp_path: Path) -> None:
    model: Any = flaxnets.load(make_folder(tmp_path / "model"))
    with pytest.raises(TypeError, match="path of a video file or a NumPy array, received NoneType"):
        model.predict(None)
    with pytest.raises(TypeError, match=r"numpy\.asarray makes an array of this"):
        model.predict(jax.numpy.zeros((4, 16, 16, 3), np.uint8))


def test_a_model_is_pickled(tmp_path: Path) -> None:
    model: Any = flaxnets.load(make_folder(tmp_path / "model"))
    video = np.full((5, 20, 30, 3), 99, np.uint8)
    again = pickle.loads(pickle.dumps(model))
    expected = model.predict(video).probabilities
    np.testing.assert_array_equal(again.predict(video).probabilities, expected)


def test_broken_folders_are_refused(tmp_path: Path, captioner: tuple[Path, list[str]]) -> None:
    with pytest.raises(ModelError, match=r"no model.json in it; expected the workdir"):
        flaxnets.load(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"a run without model.json can be neither loaded nor"):
        flaxnets.load(tmp_path / "run")
    with pytest.raises(ModelError, match="neither a folder nor the name of a shipped model"):
        flaxnets.load("captoner")
    with pytest.raises(ModelError, match="no such folder"):
        flaxnets.load(tmp_path / "absent")
    with pytest.raises(ModelError, match="no path of a folder"):
        flaxnets.load("a" * 5000)
    folder = make_folder(tmp_path / "model")
    with pytest.raises(ValueError, match="step: expected None"):
        flaxnets.load(folder, step=3)
    content = (folder / "variables.safetensors").read_bytes()
    (folder / "variables.safetensors").write_bytes(content[:-100])
    with pytest.raises(ModelError, match=r"variables.safetensors: unreadable"):
        flaxnets.load(folder)
    (folder / "model.json").write_text('{"format": 1')
    with pytest.raises(ModelError, match=r"model.json: unreadable"):
        flaxnets.load(folder)
    with pytest.raises(ValueError, match="folder: expected an empty or new one"):
        save_model(captioner[0], {}, {"params": {}})


def test_a_run_without_a_checkpoint_is_told(tmp_path: Path) -> None:
    config = load_experiment("experiments/moving_shapes.py:smoke")
    with Workdir(tmp_path / "run") as workdir:
        workdir.claim("experiments/moving_shapes.py:smoke", config)
    with pytest.raises(ModelError, match="holds no checkpoint yet"):
        flaxnets.load(tmp_path / "run")


def test_small_numbers_are_close_to_the_large_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(40, 50)).astype(np.float32) * np.logspace(-6, 4, 50, dtype=np.float32)
    variables = {
        "params": {"a": {"kernel": kernel, "bias": kernel[0]}, "decoder": {"embedding": kernel.T}},
        "batch_stats": {"a": {"mean": np.full(3, 1e6, np.float32), "count": np.array(7)}},
    }
    network = make_folder(tmp_path / "other") / "model.json"
    described = json.loads(network.read_text())
    for dtype, within in (("float32", 0), ("float16", 1e-3), ("int8", 0.5 / 127 + 1e-6)):
        folder = tmp_path / dtype
        save_model(folder, described, variables, dtype=dtype)
        read = read_variables(folder / "variables.safetensors")
        for name in ("a", "decoder"):
            given, found = variables["params"][name], read["params"][name]
            for leaf, array in given.items():
                axis = -1 if leaf == "embedding" else 0
                scale = np.abs(array).max(axis=axis, keepdims=True)
                assert found[leaf].dtype == np.float32
                assert np.abs(found[leaf] - array).max() == 0 or np.all(
                    np.abs(found[leaf] - array) <= within * scale + 6e-8
                )
        np.testing.assert_array_equal(read["batch_stats"]["a"]["mean"], np.full(3, 1e6))
        assert read["batch_stats"]["a"]["count"] == 7
    with pytest.raises(ValueError, match="dtype: unknown 'int4'; did you mean 'int8'"):
        save_model(tmp_path / "x", described, variables, dtype="int4")


def test_a_run_that_resumes_keeps_its_description(trained: Path) -> None:
    described = json.loads((trained / "model.json").read_text())
    assert described["labels"] == ["Wave", "Clap", "Kick"]
    workdir = Workdir(trained)
    config = config_of(workdir)
    config.load_assets(trained)
    with workdir:
        workdir.claim(EXPERIMENT, config)
        workdir.record_run(workdir.read_data(), config.describe_inference())
    assert json.loads((trained / "model.json").read_text()) == described


def test_the_example_of_the_docstring_runs() -> None:
    assert doctest.testmod(flaxnets).failed == 0


TINY = (
    "--config.num_steps=1",
    "--config.eval_every=1",
    "--config.optimizer.warmup_steps=0",
    "--config.log_every=1",
    "--config.batch_size=8",
    "--config.data.size=32",
    "--config.model.encoder.name=small_cnn",
    "--config.model.encoder.weights=",
    "--config.model.encoder.features=(4,8)",
    "--config.model.encoder.strides=(4,2)",
)
VIDEOS = (
    *TINY,
    "--config.data.stored_steps=4",
    "--config.data.num_steps=2",
    "--config.model.recurrent.features=4",
    "--config.model.recurrent.input_features=4",
    "--config.model.projection_features=4",
)


def write_files(root: Path, suffix: str) -> list[str]:
    """Writes two class folders of six different videos or images each; returns their paths."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(12):
        path = root / ("wave", "walk")[number % 2] / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix == "png":
            pixels = rng.integers(0, 256, (9, 12, 3), np.uint8)
            Image.fromarray(pixels).resize((50 + number, 40)).save(path)
        else:
            write_video(path, 6 + number, size=(40, 48 + 2 * number))
        paths.append(str(path))
    return paths


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_run_on_own_files_predicts_as_its_experiment_does(
    kind: str, frozen: bool, tmp_path: Path
) -> None:
    paths = write_files(tmp_path / "files", {"video": "avi", "image": "png"}[kind])
    experiment = f"{kind}_classification.py"
    config = grid.parse(
        experiment,
        *(VIDEOS if kind == "video" else TINY),
        f"--config.model.encoder.frozen={frozen}",
        f"--config.data.root={tmp_path / 'files'}",
        f"--config.data.cache={tmp_path / 'cache'}",
    )
    with Workdir(tmp_path / "run") as workdir:
        workdir.claim(f"experiments/{experiment}", config)
        train(config, workdir, show_progress=False)
    model: Any = flaxnets.load(tmp_path / "run")
    assert (model.kind, model.labels) == (f"{kind}_classification", ("walk", "wave"))
    found = model.predict(paths[:3])
    expected = own_predictions(tmp_path / "run", paths[:3])
    np.testing.assert_allclose([p.probabilities for p in found], expected, atol=1e-5)
    assert (found[0].times is None) == (kind == "image")


def test_a_program_without_its_shipped_model_asks_for_one() -> None:
    with pytest.raises(ValueError, match="expected one of them, since no shipped model 'absent'"):
        load_model(None, "absent", "caption")
