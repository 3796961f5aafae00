"""Papers on action recognition: sizes of the full networks, fused runs, what clips need both."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from data.video.clips import VideoSource
from data.video.flow import FlowImages, FlowTransform
from data.video.transforms import SpatialTransform
from experiments import (
    audio_visual,
    beyond_short_snippets,
    crnn_3d,
    gru_rcn,
    ts_lstm,
    two_stream_lrcn,
    unsupervised_lstm_classifier,
)
from experiments.classification.flow_clips import fuse_runs
from flaxnets.training.loop import train
from flaxnets.training.parallel import DataParallel
from flaxnets.training.workdir import Workdir

K = 101


def shapes_of(config: Any, frames: Any) -> Any:
    """Returns logits and parameters of a full network as shapes, for UCF101's classes."""
    config._class_names = tuple(map(str, range(K)))
    model = config.make_model()

    def init(frames: Any) -> Any:
        lengths = jnp.full(jax.tree.leaves(frames)[0].shape[:1], 2)
        return model.init_with_output(jax.random.key(0), frames, lengths, train=False)

    logits, variables = jax.eval_shape(init, frames)
    return logits.shape, variables["params"]


def count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def lstm(inputs: int, units: int) -> int:
    return 4 * units * (inputs + units + 1)


def test_the_lstm_on_percepts_has_2048_units() -> None:
    shape, params = shapes_of(unsupervised_lstm_classifier.get_config(), jnp.zeros((1, 2, 4096)))
    assert shape == (1, 2, K)
    assert count(params) == lstm(4096, 2048) + (2048 + 1) * K


def test_ts_lstm_reads_two_streams_of_2048_features() -> None:
    streams = {"rgb_whole": jnp.zeros((1, 2, 2048)), "flow_whole": jnp.zeros((1, 2, 2048))}
    config = ts_lstm.get_config()
    assert tuple(config.inputs) == tuple(streams)
    shape, params = shapes_of(config, streams)
    assert shape == (1, 1, K)
    assert count(params) == lstm(4096, 512) + (512 + 1) * K


@pytest.mark.parametrize("variant", [None, "stacked", "bidirectional"])
def test_gru_rcn_has_a_recurrent_layer_for_each_endpoint(variant: str | None) -> None:
    config = gru_rcn.get_config(variant)
    config.data.streams = ("rgb_whole",)  # Feature maps in the place of the encoder.
    sizes = {"pool2": (56, 128), "pool3": (28, 256), "pool4": (14, 512), "pool5": (7, 512)}
    maps = {name: jnp.zeros((1, 2, size, size, d)) for name, (size, d) in sizes.items()}
    shape, params = shapes_of(config, maps | {"fc7": jnp.zeros((1, 2, 4096))})
    assert config.levels == ("pool2", "pool3", "pool4", "pool5", "fc7")
    assert shape == (1, 1, 5, K)
    features = {"pool2": 64, "pool3": 128, "pool4": 256, "pool5": 256, "fc7": 512}
    below, expected = 0, 0
    for name, units in features.items():
        inputs = (4096 if name == "fc7" else sizes[name][1]) + below
        area = 1 if name == "fc7" else 9
        directions = 2 if variant == "bidirectional" else 1
        expected += directions * 3 * units * area * (inputs + units)
        expected += directions * units * K + K
        below = units if variant == "stacked" else 0
    biases = count({n: t for n, t in params.items() if n.startswith("recurrent")}) + count(
        {n: t for n, t in params.items() if n.startswith("classifier")}
    )
    assert biases == count(params)
    # Beside the kernels a GRU has at most two biases for each of its three gates.
    assert 0 < count(params) - expected <= 2 * 2 * 3 * sum(features.values())


@pytest.mark.stress
def test_full_networks_on_frames_have_the_papers_layers() -> None:
    frames = jnp.zeros((1, 2, 224, 224, 3), jnp.uint8)
    shape, params = shapes_of(beyond_short_snippets.get_config(), frames)
    assert shape == (1, 2, K)
    assert count(params["recurrent"]) == lstm(1024, 512) + 4 * lstm(512, 512)
    shape, params = shapes_of(beyond_short_snippets.get_config("conv_pooling"), frames)
    assert shape == (1, 1, K)
    assert count(params["classifier"]) == (
        (7 * 7 * 1024 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * K
    )
    for variant in (None, "flow"):
        config = two_stream_lrcn.get_config(variant)
        assert shapes_of(config, frames)[0] == (1, 2, K)
        assert config.optimizer.clip_norm == (15 if variant else 5)
    shape, params = shapes_of(crnn_3d.get_config(), jnp.zeros((1, 2, 112, 112, 3), jnp.uint8))
    assert params["conv"]["kernel"].shape == (5, 7, 7, 3, 64)
    rcn = gru_rcn.get_config()
    shape, params = shapes_of(rcn, frames)
    assert shape == (1, 1, 5, K)
    assert rcn.frozen_parts() == ("encoder",)
    described: Any = rcn.describe_inference()
    assert described["preprocessing"]["sampler"] == "uniform"


def test_the_loss_of_the_lstm_grows_in_time_and_that_of_pooling_does_not() -> None:
    kinds = [
        beyond_short_snippets.get_config(variant).make_task().loss_kind
        for variant in (None, "conv_pooling")
    ]
    assert kinds == ["linear_gain", "clip"]


def test_unknown_variants_and_values_are_named() -> None:
    with pytest.raises(ValueError, match="gru_rcn:stacked,deep: no such variant"):
        gru_rcn.get_config("stacked,deep")
    config = ts_lstm.get_config()
    config.data.cache = "features"
    with pytest.raises(ValueError, match=r"data.flow: expected the folder of the optical flow"):
        config.validate()
    config.data.streams = ("depth_whole",)
    with pytest.raises(ValueError, match=r"data.streams: unknown 'depth_whole'"):
        config.validate()
    config.data.streams, config.model.encoder.frozen = ("rgb_whole",), False
    with pytest.raises(ValueError, match=r"data.streams: expected a frozen encoder"):
        config.validate()


def test_flow_has_its_own_reader_weights_and_mirroring() -> None:
    config = ts_lstm.get_config()
    config.data.root, config.data.flow, config.flow_weights = "videos", "flow", "flow.pth"
    videos = VideoSource(("videos/a.avi",), (0,))
    rgb, flow = (config.make_stream(videos, stream) for stream in config.data.streams)
    assert rgb.flow is None
    assert isinstance(flow.flow, FlowImages)
    encoders = [config.stream_encoder(stream).weights for stream in config.data.streams]
    assert encoders == ["", "flow.pth"]
    for variant, kind in ((None, SpatialTransform), ("flow", FlowTransform)):
        lrcn = two_stream_lrcn.get_config(variant)
        lrcn.data.root, lrcn.data.flow = "videos", "flow"
        assert type(lrcn._transform(1)) is kind
        is_flow = isinstance(lrcn.make_source(("videos/a.avi",)).reader, FlowImages)
        assert is_flow == (variant == "flow")


def write_run(folder: Path, rows: list[tuple[int, list[float]]]) -> Path:
    path = Workdir(folder).predictions("test")
    path.parent.mkdir(parents=True)
    records = [
        {"index": index, "label": label, "probabilities": probabilities}
        for index, (label, probabilities) in enumerate(rows)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_runs_are_fused_by_their_weights(tmp_path: Path) -> None:
    rgb = write_run(tmp_path / "rgb", [(0, [0.9, 0.1]), (1, [0.8, 0.2]), (0, [0.6, 0.4])])
    flow = write_run(tmp_path / "flow", [(0, [0.4, 0.6]), (1, [0.3, 0.7]), (0, [0.1, 0.9])])
    assert fuse_runs((rgb, flow), (1, 0)) == pytest.approx(2 / 3)
    assert fuse_runs((rgb, flow), (0.5, 0.5)) == pytest.approx(1 / 3)
    assert fuse_runs((rgb, flow), (1 / 3, 2 / 3)) == pytest.approx(2 / 3)
    other = write_run(tmp_path / "other", [(1, [0.4, 0.6])])
    with pytest.raises(ValueError, match="workdirs: expected predictions of the same videos"):
        fuse_runs((rgb, other), (0.5, 0.5))
    Workdir(other).predictions("test").write_text('{"index": 0, "caption": "a dog"}\n')
    with pytest.raises(ValueError, match="other: expected predictions of a classifier"):
        fuse_runs((rgb, other), (0.5, 0.5))


def test_a_fusion_without_predictions_names_the_command(tmp_path: Path) -> None:
    rgb = write_run(tmp_path / "rgb", [(0, [0.9, 0.1])])
    command = f"error: {tmp_path / 'flow'}: .* launch.evaluate --workdir=.*flow --split=test"
    with pytest.raises(SystemExit, match=command):
        two_stream_lrcn.print_fusions(str(rgb), str(tmp_path / "flow"))


@pytest.mark.stress
def test_both_streams_together_are_better_than_each_alone(tmp_path: Path) -> None:
    accuracies = {}
    for streams in (("video",), ("audio",), ("video", "audio")):
        config = audio_visual.get_config("generated")
        config.streams, config.data.num_examples = streams, 450
        config.num_steps = config.eval_every = 250
        with Workdir(tmp_path / "_".join(streams)) as workdir:
            workdir.claim("experiments/audio_visual.py:generated", config)
            strategy = DataParallel(jax.devices()[:1])
            outcome = train(config, workdir, strategy=strategy, show_progress=False)
        accuracies[streams] = outcome.metrics["accuracy"]
    both = accuracies.pop(("video", "audio"))
    # A third at most in the mean; the standard deviation of 450 clips is 2.2 points.
    assert max(accuracies.values()) < 1 / 3 + 0.1
    assert both > max(1 / 3 + 0.05, *accuracies.values())
