"""Continuation of files by a run that predicts frames, and its report."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from data.frames import BouncingBalls
from experiments.conv_lstm import get_config
from flaxnets.inference.trained_forecaster import ContinuesFrames, TrainedForecaster
from tests.data.video_files import write_video
from tests.launch.programs import finish, sentence, start, succeed

SMOKE = "--config=experiments/conv_lstm.py:smoke"


def test_the_network_continues_sequences_as_its_task_predicts_them(tmp_path: Path) -> None:
    config = get_config("smoke")
    assert isinstance(config, ContinuesFrames)
    assert not config._sources  # The data are not needed to predict.
    task, network = config.make_task(), config.make_model()
    frames = config.load_frames("validation", 1)
    num_inputs, num_outputs = config.horizon
    batch = {"frames": frames[None], "mask": np.ones(1, bool)}
    # Numbers of our own: compiling the initializers takes longer than all the rest.
    shapes = jax.eval_shape(lambda key: task.initialize(network, key, batch), jax.random.key(0))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda each: rng.normal(0, 0.1, each.shape).astype(each.dtype), shapes)
    model: Any = SimpleNamespace(config=config, model=network, variables=variables)
    forecaster = TrainedForecaster(model)
    given = frames[None, :num_inputs]
    longer = forecaster.predict(given, num_outputs + 2)
    assert longer.shape == (1, num_outputs + 2, *config.frame_shape)
    # The first frames of a longer continuation are those of a shorter one.
    np.testing.assert_allclose(
        longer[:, :num_outputs], forecaster.predict(given, num_outputs), rtol=1e-5, atol=1e-6
    )
    np.save(tmp_path / "balls.npy", frames[:num_inputs])
    files = forecaster.continue_file(str(tmp_path / "balls.npy"), num_outputs + 2, tmp_path, "on")
    with np.load(files["npz"]) as arrays:
        assert np.array_equal(arrays["inputs"], frames[:num_inputs])
        assert np.abs(arrays["prediction"] / 255 - longer[0]).max() <= 0.5 / 255 + 1e-6
    assert config.load_clip("validation", 1).shape == (*frames.shape[:3], 3)


@pytest.mark.subprocess
@pytest.mark.stress
def test_the_programs_train_continue_and_report(tmp_path: Path) -> None:
    run, out = f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'continued'}"
    succeed(start("train", SMOKE, run))
    balls = tmp_path / "balls.npz"
    np.savez(balls, frames=BouncingBalls("test", 1, num_frames=6, size=16)[0]["frames"])
    short = tmp_path / "short.npz"
    np.savez(short, frames=np.zeros((2, 16, 16, 1), np.uint8))
    clip = write_video(tmp_path / "below" / "balls.avi", 8)
    done = finish(start("predict", run, out, "--frames=4", *map(str, (balls, short, clip))))
    assert done.returncode == 1, done.stderr
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert second == {
        "path": str(short),
        "error": "expected at least the 3 frames that 3 inputs at stride 1 span, received 2",
    }
    assert (first["inputs"], first["frames"]) == (3, 4)
    # Two files of one name do not overwrite each other.
    assert Path(first["mp4"]).name == "balls.mp4"
    assert Path(third["gif"]).name == "balls-2.gif"
    for line in (first, third):
        assert all(Path(line[ending]).stat().st_size for ending in ("mp4", "gif", "png", "npz"))
    assert "--out: expected the folder" in sentence(finish(start("predict", run, str(balls))))
    found = finish(start("predict", "--frames=4", out, str(clip)))
    assert "--frames: expected with --workdir of a run that predicts" in sentence(found)
    page = Path(succeed(start("report", run, "--split=test")).strip()).read_text()
    assert "Error over the horizon" in page
    assert 'alt="prediction, frame 2"' in page
