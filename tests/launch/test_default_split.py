"""The split that is taken without ``--split``."""

import logging

import pytest

from launch.default_split import on_split


def test_validation_stands_in_for_a_test_split_that_is_not_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[str] = []

    def call(split: str) -> int:
        asked.append(split)
        if split == "test":
            raise ValueError("split: expected one of train, validation, received 'test'")
        return 7

    with caplog.at_level(logging.WARNING):
        assert on_split(None, call) == ("validation", 7)
    assert asked == ["test", "validation"]
    assert "--split=validation is taken, since there is no test split: split: exp" in caplog.text
    with pytest.raises(ValueError, match="received 'test'"):
        on_split("test", call)


def test_a_test_split_that_cannot_be_read_is_an_error() -> None:
    def call(split: str) -> int:
        raise ValueError(f"data.root: the split {split} is damaged")

    with pytest.raises(ValueError, match="the split test is damaged"):
        on_split(None, call)
    assert on_split(None, len) == ("test", 4)
