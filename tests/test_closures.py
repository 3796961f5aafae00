"""The number of files that a training reads: few enough to know them all."""

import pytest

from tests.closures import MOST_FILES, closure


@pytest.mark.parametrize("experiment", MOST_FILES)
def test_a_training_imports_few_files(experiment: str) -> None:
    files = closure(f"experiments/{experiment}.py", "launch/train.py")
    assert len(files) <= MOST_FILES[experiment], "\n".join(files)


def test_the_closure_holds_the_tables_of_parts() -> None:
    files = closure("experiments/show_attend_tell.py", "launch/train.py")
    for package in ("encoders", "recurrent", "heads", "decoders"):
        assert f"flaxnets/{package}/config.py" in files
    assert "flaxnets/encoders/vgg.py" in files
