"""Captioning experiments: vocabulary, weights of captions, metrics, views of images, errors."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
from PIL import Image

from data.captions.images import ImageError
from data.captions.vocabulary import Vocabulary
from experiments import scst, show_attend_tell
from experiments.captioning import data as caption_data
from experiments.captioning.caption_weights import count_frequencies, weigh_captions
from experiments.captioning.config import VOCABULARY
from experiments.captioning.data import read_split, training_views
from flaxnets.training.checkpoint import Checkpointer, Position
from flaxnets.training.config import set_runtime
from flaxnets.training.state import make_state
from flaxnets.training.workdir import Workdir
from tests.launch.captioners import make_config, make_flickr8k

WORDS = Vocabulary(("a", "red", "circle"))


def smoke(tmp_path: Path, module: Any = show_attend_tell) -> Any:
    config = module.get_config("smoke")
    config.data.cache = str(tmp_path / "cache")
    return config


def first_batch(config: Any, split: str) -> Any:
    with config.make_data(split).batches() as batches:
        return next(batches)


def test_the_vocabulary_is_that_of_the_training_captions_and_lies_in_the_workdir(
    tmp_path: Path,
) -> None:
    config = smoke(tmp_path)
    texts = [text for texts in config.references("train") for text in texts]
    assert len(texts) == 5 * 32
    assert config.vocabulary == Vocabulary.from_captions(texts, 1)
    config.save_assets(tmp_path)
    config.save_assets(tmp_path)  # A run that is resumed has the same.
    trained = smoke(tmp_path)
    trained.data.num_train = 1  # A trained model does not count again.
    trained.load_assets(tmp_path)
    assert trained.vocabulary == config.vocabulary


def test_another_vocabulary_is_refused_and_kept(tmp_path: Path) -> None:
    WORDS.save(tmp_path / VOCABULARY)
    with pytest.raises(ValueError, match="vocabulary: expected the same words as the model was tr"):
        smoke(tmp_path).save_assets(tmp_path)
    assert Vocabulary.load(tmp_path / VOCABULARY) == WORDS
    with pytest.raises(FileNotFoundError, match=VOCABULARY):
        smoke(tmp_path).load_assets(tmp_path / "none")
    (tmp_path / VOCABULARY).write_text("{}")
    with pytest.raises(ValueError, match=r"expected a vocabulary as Vocabulary\.save writes it"):
        smoke(tmp_path).load_assets(tmp_path)


def test_self_critical_training_starts_from_a_model_of_the_same_words(tmp_path: Path) -> None:
    start = tmp_path / "start"
    start.mkdir()
    WORDS.save(start / VOCABULARY)
    config = smoke(tmp_path, scst)
    config.start = str(start)
    with pytest.raises(ValueError, match="vocabulary: expected the same words"):
        config.save_assets(tmp_path)
    assert not (tmp_path / VOCABULARY).exists()
    (start / VOCABULARY).unlink()
    config.vocabulary.save(start / VOCABULARY)
    config.save_assets(tmp_path)
    assert Vocabulary.load(tmp_path / VOCABULARY) == config.vocabulary


def test_self_critical_training_starts_from_the_best_checkpoint_or_the_one_that_is_named(
    tmp_path: Path,
) -> None:
    trained = smoke(tmp_path)
    with Workdir(tmp_path / "start") as workdir:
        workdir.claim("experiments/show_attend_tell.py:smoke", trained)
        checkpointer = Checkpointer(workdir.checkpoints, best_metric=trained.best_metric)
        state = make_state({"params": {"w": np.zeros(2)}}, optax.sgd(1.0), 0)
        for step, score in ((2, 0.9), (4, 0.1)):
            there = state.replace(step=state.step + step, params={"w": np.full(2, step, float)})
            checkpointer.save(there, Position(step, {}))
            checkpointer.rank(step, {trained.best_metric: score})
        checkpointer.close()
    config = smoke(tmp_path, scst)
    config.start = str(tmp_path / "start")
    for named, step in ((0, 2), (4, 4)):
        config.start_step = named
        variables = config.initial_variables({"params": {"w": np.zeros(2)}})
        np.testing.assert_array_equal(variables["params"]["w"], step)
    config.start_step = 3
    with pytest.raises(FileNotFoundError, match="3"):
        config.initial_variables({"params": {"w": np.zeros(2)}})


def test_frequencies_are_counted_once_a_vocabulary_and_split(tmp_path: Path) -> None:
    config = smoke(tmp_path, scst)
    captions, cache = config.references("train"), config.data.cache
    counted = count_frequencies(captions, config.vocabulary, cache)
    [path] = (tmp_path / "cache").iterdir()
    written = path.stat().st_mtime_ns
    again = count_frequencies(captions, config.vocabulary, cache)
    assert path.stat().st_mtime_ns == written
    assert all((a == b).all() for a, b in zip(counted.idf, again.idf, strict=True))
    count_frequencies(captions, WORDS, cache)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_captions_that_agree_with_an_images_others_weigh_more(tmp_path: Path) -> None:
    captions = (
        ("a red circle moves", "a red circle moves", "a red ball", "some thing"),
        ("a ball",),
        ("one two", "three four"),
        ("a red circle moves", "a red circle moves", "..."),
    )
    words = Vocabulary.from_captions((text for texts in captions for text in texts), 1)
    frequencies = count_frequencies(captions, words, str(tmp_path))
    whole = weigh_captions(captions, words, frequencies, 1.0)
    first, *others = whole
    assert first[0] == first[1] > first[2] > first[3] == 0
    assert [weights.tolist() for weights in others[:2]] == [[1], [1, 1]]
    assert others[2] == pytest.approx([1.5, 1.5, 0], rel=1e-6)
    assert all(weights.mean() == pytest.approx(1) for weights in whole)
    half = weigh_captions(captions, words, frequencies, 0.5)
    for some, all_of_it in zip(half, whole, strict=True):
        assert some == pytest.approx((1 + all_of_it) / 2)
    with pytest.raises(ValueError, match=r"data.consensus: expected 0 to 1, received 1\.5"):
        weigh_captions(captions, words, frequencies, 1.5)


def test_consensus_weighs_training_captions_only(tmp_path: Path) -> None:
    config = smoke(tmp_path)
    config.data.consensus = 1.0
    [weighed, evaluated] = (first_batch(config, split) for split in ("train", "validation"))
    assert weighed["caption_weights"].std() > 0.1
    assert "caption_weights" not in evaluated
    config.data.consensus = 0.0
    assert "caption_weights" not in first_batch(config, "train")


def test_the_sampled_variant_is_not_of_self_critical_training() -> None:
    config: Any = show_attend_tell.get_config("flickr8k_sampled")
    assert (config.sampling_increase, config.data.consensus) == (0.25, 1.0)
    assert config.sampling_every == 1
    message = "scst:flickr8k_sampled: no such variant; did you mean 'flickr8k'"
    with pytest.raises(ValueError, match=message):
        scst.get_config("flickr8k_sampled")


def test_variants_that_need_a_trained_captioner_refuse_to_start_without_one(tmp_path: Path) -> None:
    config: Any = show_attend_tell.get_config("flickr8k_sampled")
    with pytest.raises(ValueError, match="initialize_from: expected the workdir of a trained capt"):
        config.validate()
    config.initialize_from = "runs/show_attend_tell"
    config.validate()
    rewarded: Any = scst.get_config("flickr8k")
    with pytest.raises(ValueError, match="start: expected the workdir of a trained captioner, who"):
        rewarded.validate()
    rewarded.start = str(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="no checkpoints; expected a workdir that has tr"):
        rewarded.validate()
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    rewarded.validate()
    for variant in ("moving_shapes", "smoke", "cross_entropy"):
        scst.get_config(variant).validate()


def test_human_captions_score_better_than_those_of_another_clip(tmp_path: Path) -> None:
    config = smoke(tmp_path)
    score = config.make_scorer("validation")
    references = config.references("validation")
    own = score([{"index": i, "caption": texts[0]} for i, texts in enumerate(references)])
    others = score([{"index": i, "caption": references[i - 1][0]} for i in range(len(references))])
    assert own["motion_accuracy"] == own["object_accuracy"] == 1
    assert own["BLEU-4"] == pytest.approx(1)
    assert set(own) == set(config.scored_metrics("validation"))
    assert all(others[name] < own[name] for name in own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "flickr8"}, r"data\.kind: unknown 'flickr8'; did you mean 'flickr8k'\?"),
        ({"kind": "flickr8k"}, r"data\.root: expected the folder of flickr8k; give --config"),
        ({"kind": "karpathy"}, r"data\.root: expected the folder of karpathy"),
        ({"kind": "karpathy", "root": "x"}, r"data\.annotations: expected the JSON of Karpathy"),
    ],
)
def test_missing_flags_of_the_data_are_named(
    changes: dict[str, str], message: str, tmp_path: Path
) -> None:
    config = smoke(tmp_path)
    for name, value in changes.items():
        setattr(config.data, name, value)
    with pytest.raises(ValueError, match=message):
        config.make_data("train")


def test_missing_splits_and_folders_are_named(tmp_path: Path) -> None:
    config = smoke(tmp_path)
    for split in ("tests", ""):
        with pytest.raises(ValueError, match="split: expected one of train, validation, test, rec"):
            config.make_data(split)
    config.data.kind, config.data.root = "flickr8k", str(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none: expected the folder of Flickr8k"):
        read_split(config.data, "train")
    config.data.root = str(tmp_path)
    with pytest.raises(ValueError, match=r"split: expected one of .*, received 'tset'; did you me"):
        read_split(config.data, "tset")


def test_absent_photographs_are_skipped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(make_flickr8k(tmp_path))
    (tmp_path / "Flicker8k_Dataset/train1.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of the 5 images .*train1\.jpg"):
        read_split(config.data, "train")
    set_runtime(config, "data.missing=skip")  # An evaluation may choose it, too.
    with caplog.at_level(logging.WARNING):
        split = read_split(config.data, "train")
    assert split.names == ("train0.jpg", "train2.jpg", "train3.jpg", "train4.jpg")
    assert "left out 1 of 5 images of the split train, whose files are not there" in caplog.text
    config.data.missing = "skipp"
    with pytest.raises(ValueError, match=r"data\.missing: unknown 'skipp'; did you mean 'skip'"):
        read_split(config.data, "train")


def test_images_beyond_the_limit_are_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(make_flickr8k(tmp_path))
    caches = []
    monkeypatch.setattr(
        caption_data, "cache_features", lambda *_, preprocessing, **__: caches.append(preprocessing)
    )
    for limit in (50_000_000, 80 * 64, 80 * 64 - 1):
        config.data.max_pixels = limit
        split = read_split(config.data, "validation")
        assert bool(split.inputs[0]["mask"]) == (limit >= 80 * 64)
        caption_data.model_inputs(config.data, config.model.encoder, split)
    assert "expected at most 5119 pixels, received 80 × 64" in split.inputs.explain(0)
    with pytest.raises(ImageError, match=r"dev0\.jpg: expected at most 5119 pixels"):
        config.read_image(str(tmp_path / "Flicker8k_Dataset/dev0.jpg"))
    # A cache of another limit, whose unreadable images differ, is another one.
    assert "max_pixels" not in caches[0]
    assert [cache["max_pixels"] for cache in caches[1:]] == [5120, 5119]
    config.data.max_pixels = 10**9
    with pytest.raises(ValueError, match=r"max_pixels: expected 1 to 178956970, .* received 10000"):
        read_split(config.data, "validation")


def test_unknown_parts_are_refused(tmp_path: Path) -> None:
    config = smoke(tmp_path)
    config.model.decoder.cell = "rnn"
    with pytest.raises(ValueError, match=r"model\.decoder\.cell: unknown 'rnn'; there are gru, ls"):
        config.make_model()
    other = smoke(tmp_path, scst)
    other.model.decoder.name = "up_donw"
    with pytest.raises(ValueError, match=r"decoder\.name: unknown 'up_donw'; did you mean 'up_do"):
        other.make_model()
    for module in (scst, show_attend_tell):
        with pytest.raises(ValueError, match="no such variant; did you mean 'flickr8k'"):
            module.get_config("flickr30k")
    with pytest.raises(ValueError, match="images: this model captions the videos of the embedded"):
        config.make_prediction_data(["a.jpg"])


def test_attention_needs_more_than_one_region(tmp_path: Path) -> None:
    config = make_config(make_flickr8k(tmp_path, ["A dog", "The dog"]))
    config.model.encoder.name, config.model.encoder.level = "resnet18", "pooled"
    config.model.encoder.weights = ""
    for name in ("soft_attention", "hard_attention", "att2in", "up_down"):
        config.model.decoder.name = name
        expected = (
            rf"model\.decoder\.name: {name} reads feature maps, and model\.encoder\.level=pooled "
            r"of resnet18 gives vectors; choose a level of stem, .*stage_4, or a decoder without"
        )
        with pytest.raises(ValueError, match=expected):
            config.make_model()
    config.model.decoder.name = "show_and_tell"
    config.make_model()
    config.model.decoder.name, config.model.encoder.level = "up_down", "stage_3"
    config.make_model()


def test_training_has_mirrored_images_with_mirrored_captions(tmp_path: Path) -> None:
    root = make_flickr8k(tmp_path, ["A dog on the left .", "The right dog"])
    config = make_config(root)
    config.model.encoder.frozen = False
    seen: dict[int, list[tuple[bool, str]]] = {}
    with config.make_data("train").batches() as batches:
        for _ in range(5):  # 2 × 5 images × 2 captions in batches of 8 are 2.5, of two epochs 5.
            batch = next(batches)
            for row in range(8):
                number = int(batch["index"][row]) // 2 % 5
                image = config.load_clip("train", number)[0]
                mirrored = is_crop(batch["image"][row], resize(image[:, ::-1], 73))
                assert mirrored or is_crop(batch["image"][row], resize(image, 73))
                text = config.vocabulary.decode(batch["tokens"][row, 0])
                seen.setdefault(number, []).append((mirrored, text))
    views = [
        (False, "a dog on the left"),
        (False, "the right dog"),
        (True, "a dog on the right"),
        (True, "the left dog"),
    ]
    assert seen.keys() == set(range(5))
    assert all(sorted(found) == sorted(2 * views) for found in seen.values())
    with config.make_data("validation").batches() as batches:
        batch = next(batches)
    for row in range(4):
        image = config.load_clip("validation", row)[0]
        np.testing.assert_array_equal(batch["image"][row], resize(image, 64))
    config.data.image_fit = "cut"
    with pytest.raises(ValueError, match=r"data.image_fit: unknown 'cut'; there are crop, stre"):
        config.make_data("train")


def test_training_has_corner_crops(tmp_path: Path) -> None:
    config = make_config(make_flickr8k(tmp_path, ["A dog on the left ."]))
    split = read_split(config.data, "train")
    config.data.num_corners = 3
    views = training_views(config.data, split)
    image = config.load_clip("train", 0)[0]
    assert image.shape == (64, 80, 3)
    corners = image[:51, :64], image[12:, 16:], image[:51, 16:]
    expected = [image, image[:, ::-1], corners[0], corners[1][:, ::-1], corners[2]]
    for number, (view, seen) in enumerate(zip(views, expected, strict=True)):
        np.testing.assert_array_equal(view.inputs[0]["image"], resize(seen, 64))
        assert ("right" in view.captions[0][0]) == (number in (1, 3))
    config.data.mirror = False
    assert len(training_views(config.data, split)) == 4
    config.data.num_corners = 5
    with pytest.raises(ValueError, match=r"data\.num_corners: expected 0 to 4, received 5"):
        config.make_data("train")
    config.data.num_corners = 1
    assert len(training_views(config.data, split, cached=False)) == 1


def resize(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def is_crop(part: np.ndarray, image: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(image, part.shape)
    return bool((windows == part).all((-3, -2, -1)).any())
