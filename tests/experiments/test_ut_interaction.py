"""UT-Interaction: its settings, and folds that share no clip."""

from pathlib import Path

import pytest

from experiments.ut_interaction import UTInteractionConfig, get_config

UT_INTERACTION = Path(__file__).parents[2].parent / "shared/data/ut_interaction/set1"


def test_variants() -> None:
    assert isinstance(get_config(), UTInteractionConfig)
    assert get_config("cnn").model.recurrent.cell == "average"
    assert get_config("rnn").model.encoder.name == "downsampled_frames"
    with pytest.raises(ValueError, match="ut_interaction:big: no such variant"):
        get_config("big")


def test_a_missing_root_is_named() -> None:
    with pytest.raises(ValueError, match=r"data.root: expected the folder of UT-Interaction"):
        _ = get_config().class_names


@pytest.mark.skipif(not UT_INTERACTION.is_dir(), reason=f"{UT_INTERACTION} is not there")
def test_folds_test_each_clip_once_and_train_on_none_of_its_sequence() -> None:
    config = get_config()
    config.data.root = str(UT_INTERACTION)
    assert len(config.class_names) == 6
    tested: list[int] = []
    listings = set()
    for fold in range(1, 11):
        config.set_fold(fold)
        every = config._all_videos()
        listings.add((every.paths, every.labels))
        train, test = config._indices("train"), config._indices("test")
        assert not set(train) & set(test)
        assert sorted([*train, *test]) == list(range(60))
        assert len({every.groups[i] for i in test}) == 1
        assert not {every.groups[i] for i in train} & {every.groups[i] for i in test}
        for split, indices in (("train", train), ("test", test)):
            videos = config._videos(split)
            assert [every.paths[i] for i in indices] == list(videos.paths)
            assert [every.labels[i] for i in indices] == list(videos.labels)
        tested += test.tolist()
    assert sorted(tested) == list(range(60))
    # The same list in each fold, so that they share a cache.
    assert len(listings) == 1


@pytest.mark.skipif(not UT_INTERACTION.is_dir(), reason=f"{UT_INTERACTION} is not there")
def test_a_fold_that_is_held_out_neither_trains_nor_is_tested() -> None:
    config = get_config()
    config.data.root = str(UT_INTERACTION)
    config.set_fold(2)
    whole = config._all_videos().paths
    tested = set(config._videos("test").paths)
    config.set_fold(7)
    held_out = set(config._videos("test").paths)
    config.set_fold(2)
    config.hold_out_fold(7)
    parts = [set(config._videos(split).paths) for split in ("train", "validation", "test")]
    assert parts[1:] == [held_out, tested]
    assert parts[0] == set(whole) - held_out - tested
    assert config._all_videos().paths == whole
    assert len(config._indices("validation")) == len(held_out)
    config.hold_out_fold(2)
    with pytest.raises(ValueError, match=r"validation_fold: expected another than data.fold = 2"):
        config._videos("train")


@pytest.mark.skipif(not UT_INTERACTION.is_dir(), reason=f"{UT_INTERACTION} is not there")
def test_fold_0_trains_on_all_clips() -> None:
    config = get_config()
    config.data.root = str(UT_INTERACTION)
    every = config._all_videos()
    config.set_fold(0)
    assert config._videos("train").names == every.names == config._all_videos().names
    assert config._indices("train").tolist() == list(range(60))
    with pytest.raises(ValueError, match=r"split: expected train with data\.fold = 0, .*'test'"):
        config._videos("test")
    config.hold_out_fold(3)
    with pytest.raises(ValueError, match=r"data\.validation_fold: expected 0 with data\.fold = 0"):
        config._videos("train")
