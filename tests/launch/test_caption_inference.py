"""Trained captioners: captions of one model and of ensembles, and attention weights."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from data.captions import java_scorers
from data.captions.images import ImageTransform, read_image
from data.captions.vocabulary import Vocabulary
from experiments.captioning import data as caption_data
from flaxnets.inference.trained_captioner import Captioned, TrainedCaptioner
from flaxnets.inference.trained_model import TrainedModel, read_predictions
from flaxnets.training.workdir import Workdir
from launch.program import load_experiment
from tests.launch.captioners import make_config, make_flickr8k, make_run
from tests.launch.programs import finish, start

ROOT = Path(__file__).parents[2]


def configuration(model: TrainedModel) -> Any:
    """Returns the experiment's configuration, whose type the trainer does not know."""
    return model.config


def encode(images: np.ndarray) -> np.ndarray:
    """Replaces the frozen encoder: (n,64,64,3) uint8 to (n,2,2,1280) float32."""
    means = images.reshape(len(images), 2, 32, 2, 32, 3).mean((2, 4), dtype=np.float32)
    return np.tile(means / 128 - 1, 427)[..., :1280]


def encode_all(root: str, images: Any, *arguments: Any, **options: Any) -> list[dict[str, Any]]:
    """Replaces the cache of features."""
    examples = [images[index] for index in range(len(images))]
    for example in examples:
        example["features"] = encode(example.pop("image")[None])[0].astype(np.float16)
    return examples


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_flickr8k(tmp_path_factory.mktemp("data") / "flickr8k")


@pytest.fixture
def files(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of nine images; models are made without their encoder."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(caption_data, "make_encode", lambda encoder, pool: encode)
    monkeypatch.setattr(caption_data, "cache_features", encode_all)
    return sorted(map(str, (root / "Flicker8k_Dataset").glob("*.jpg")))[:9]


@pytest.fixture(scope="module")
def models(root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TrainedModel]:
    """Two models with the same vocabulary and different parameters."""
    folder = tmp_path_factory.mktemp("runs")
    return [make_run(folder / str(seed), make_config(root, seed=seed)) for seed in range(2)]


def collect(captioner: TrainedCaptioner, paths: list[str], **options: Any) -> list[Captioned]:
    return list(captioner.caption_files(paths, **options))


@pytest.mark.slow
def test_an_ensemble_is_scored_on_a_split(
    models: list[TrainedModel], files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(java_scorers, "find_java", lambda: None)
    alone = models[0].evaluate("validation")
    records = read_predictions(models[0].workdir.predictions("validation"))
    metrics, found = TrainedCaptioner(models[:1]).evaluate("validation")
    assert found == records
    assert metrics == {name: pytest.approx(alone[name]) for name in metrics}
    assert {"BLEU-4", "CIDEr", "examples", "skipped"} <= metrics.keys()
    _, together = TrainedCaptioner(models).evaluate("validation")
    assert [record["index"] for record in together] == [0, 1, 2, 3]
    values = [[record["log_probability"] for record in each] for each in (together, records)]
    assert values[0] != values[1]
    with pytest.raises(ValueError, match="the training data have no end"):
        TrainedCaptioner(models).evaluate("train")


def test_files_are_captioned_in_order_and_the_unreadable_are_told(
    models: list[TrainedModel], files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    mixed = [*files[:4], str(tmp_path / "text.jpg"), *files[4:]]
    captioner = TrainedCaptioner(models[:1])
    found = collect(captioner, mixed)
    # More images than a batch of 8 holds.
    assert [captioned.index for captioned in found] == list(range(10))
    assert found[4].captions == ()
    assert "text.jpg: no image in a format that is read (JPEG, PNG, " in found[4].problem
    alone = collect(captioner, files)
    for captioned, same in zip([*found[:4], *found[5:]], alone, strict=True):
        # A beam of 3 may end with fewer hypotheses.
        assert 1 <= len(captioned.captions) <= 3
        for caption, other in zip(captioned.captions, same.captions, strict=True):
            assert caption.words == other.words
            assert caption.log_probability == pytest.approx(other.log_probability, abs=1e-4)
            assert set(caption.words) <= set(configuration(models[0]).vocabulary.words)


@pytest.mark.slow
def test_the_program_refuses_images_beyond_its_limit(
    models: list[TrainedModel], files: list[str], tmp_path: Path
) -> None:
    large = tmp_path / "large.png"
    Image.new("RGB", (100, 100)).save(large)
    workdir = models[0].workdir.path
    done = finish(
        start("caption", f"--workdir={workdir}", "--max_pixels=9999", files[0], str(large))
    )
    captioned, refused = (json.loads(line) for line in done.stdout.splitlines())
    assert captioned["path"] == files[0]
    assert captioned["caption"]
    reason = "expected at most 9999 pixels, received 100 × 100; a larger max_pixels reads it"
    assert refused == {"path": str(large), "error": reason}
    assert done.returncode == 1


def test_captions_of_scripts_without_spaces_have_none(
    models: list[TrainedModel], files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner = TrainedCaptioner(models[:1])
    number = len(configuration(models[0]).vocabulary.words)
    chinese = Vocabulary(tuple(chr(0x4E00 + i) for i in range(number)))
    task = dataclasses.replace(captioner._tasks[0], words=chinese.decode)
    monkeypatch.setattr(captioner, "_tasks", [task])
    for captioned in collect(captioner, files[:1]):
        for caption in captioned.captions:
            ids = [chinese.encode(word)[0] for word in caption.words]
            assert caption.text == chinese.decode(ids)
            assert " " not in caption.text.replace(" <unk> ", "").replace("<unk>", "").strip()


@pytest.mark.slow
def test_attention_is_that_of_teacher_forcing(models: list[TrainedModel], files: list[str]) -> None:
    model = models[0]
    vocabulary = configuration(model).vocabulary
    transform = ImageTransform(64, stretch=True)
    images = [transform(read_image(path)) for path in files]
    features = encode(np.stack(images)).astype(np.float16)
    for captioned in collect(TrainedCaptioner([model]), files, attention=True):
        for caption in captioned.captions:
            assert caption.attention is not None
            assert caption.attention.shape == (len(caption.words), 2, 2)
            ids = np.array([[vocabulary.encode(caption.text)]], np.int32)
            outputs: Any = model.config.make_model().apply(
                jax.device_get(model.variables),
                features[captioned.index][None],
                ids,
                np.array([[ids.size]], np.int32),
                train=False,
            )
            n = len(caption.words)
            expected = np.asarray(outputs.attention)[0, 0, :n].reshape(n, 2, 2)
            np.testing.assert_allclose(caption.attention, expected, atol=1e-5)
            log_probs = jax.nn.log_softmax(outputs.logits[0, 0])
            words = log_probs[np.arange(ids.size), ids[0, 0]]
            total = words.sum() if caption.ended else words[:-1].sum()
            assert caption.log_probability == pytest.approx(float(total), abs=1e-3)


def test_a_model_with_itself_is_itself_and_two_are_their_mean(
    models: list[TrainedModel], files: list[str]
) -> None:
    alone, twice, other, both = (
        collect(TrainedCaptioner(members), files)
        for members in (models[:1], [models[0]] * 2, models[1:], models)
    )
    for one, same in zip(alone, twice, strict=True):
        assert one.captions[0].words == same.captions[0].words
        logs = one.captions[0].log_probability, same.captions[0].log_probability
        assert logs[0] == pytest.approx(logs[1], abs=1e-4)
    likelihoods = [
        {caption.words: caption.log_probability for caption in found[0].captions}
        for found in (alone, other, both)
    ]
    assert likelihoods[0] != likelihoods[2] != likelihoods[1]


def test_options_change_the_search(models: list[TrainedModel], files: list[str]) -> None:
    base = configuration(models[0]).search
    greedy = dataclasses.replace(base, method="greedy")
    for captioned in collect(TrainedCaptioner(models[:1], greedy), files):
        assert len(captioned.captions) == 1
    sampling = dataclasses.replace(base, method="sample", num_samples=2)
    first, same, second = (
        collect(TrainedCaptioner(models[:1], sampling, seed=seed), files) for seed in (1, 1, 2)
    )
    assert first == same != second
    assert {len(captioned.captions) for captioned in first} == {2}


@pytest.mark.slow
def test_examples_of_a_split_are_those_of_an_evaluation(
    models: list[TrainedModel], files: list[str]
) -> None:
    model = models[0]
    model.evaluate("test")
    captioner = TrainedCaptioner([model])
    predictions = model.workdir.predictions("test")
    records = {record["index"]: record for record in read_predictions(predictions)}
    assert len(records) == 12
    found = list(captioner.caption_examples("test", [11, 2, 9], attention=True))
    assert [captioned.index for captioned in found] == [2, 9, 11]
    for captioned in found:
        best = captioned.captions[0]
        assert best.text == records[captioned.index]["caption"]
        assert best.attention is not None
        np.testing.assert_allclose(best.attention.sum((1, 2)), 1, atol=1e-5)
    results = json.loads(predictions.with_suffix(".coco.json").read_text())
    # Flickr8k's names are no numbers.
    assert results == [
        {"image_id": index, "caption": record["caption"]} for index, record in records.items()
    ]


def test_what_cannot_decode_together_is_refused(
    models: list[TrainedModel], root: Path, files: list[str], tmp_path: Path
) -> None:
    words = make_flickr8k(tmp_path / "words", ["a zebra and a dog"])
    other = make_run(tmp_path / "other", make_config(words))
    with pytest.raises(ValueError, match=r"cannot decode together: vocabulary: .* zebra"):
        TrainedCaptioner([models[0], other])
    with pytest.raises(ValueError, match="models: expected at least one, received none"):
        TrainedCaptioner([])
    # Another vocabulary beside a checkpoint.
    copy = tmp_path / "copy"
    shutil.copytree(models[0].workdir.path, copy)
    shutil.copy(tmp_path / "other/vocabulary.json", copy)
    with pytest.raises(ValueError, match=r"vocabulary.json: expected \d+ ids, as the check"):
        TrainedModel(make_config(root), Workdir(copy))
    # Another configuration.
    wider = make_config(root)
    wider.model.decoder.features = 12
    with pytest.raises(ValueError, match="does not fit the model of this configuration"):
        collect(TrainedCaptioner([TrainedModel(wider, models[0].workdir)]), files)
    classifier: Any = load_experiment("experiments/moving_shapes.py:smoke")
    model: Any = type("Model", (), {"config": classifier, "workdir": Workdir("runs/crnn")})()
    with pytest.raises(ValueError, match="runs/crnn: expected a captioner, received a model of"):
        TrainedCaptioner([model])


def test_a_decoder_without_attention_says_so(root: Path, files: list[str], tmp_path: Path) -> None:
    experiment = "experiments/show_and_tell.py"
    model = make_run(tmp_path, make_config(root, experiment), experiment)
    captioner = TrainedCaptioner([model])
    assert len(collect(captioner, files)) == 9
    with pytest.raises(ValueError, match=r"attention: expected False, .* does not attend"):
        collect(captioner, files, attention=True)
