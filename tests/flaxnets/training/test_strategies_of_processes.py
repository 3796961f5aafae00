"""Two processes of four devices each give the losses and evaluation of one device."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.flaxnets.training.strategies import ANSWERS
from tests.launch.jobs import Job

pytestmark = pytest.mark.stress
CASES = (
    *("jit/crnn/float32", "jit/crnn/float64", "jit/captioner/float32", "jit/captioner/float64"),
    *("jit/lines/float32", "jit/lines/float64"),
    *("pmap/crnn/float32", "pmap/lines/float32"),
)
TOLERANCES = {"float32": 1e-4, "float64": 1e-10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("figures")
    module = "tests.flaxnets.training.figures_of_processes"
    with Job(module, [str(path), *CASES], logs=path / "logs", devices=4) as job:
        job.succeed()
    # In a process of its own, too: float64 figures of the tests' own process differ by 1e-9.
    alone = sorted({"single/" + case.partition("/")[2] for case in CASES})
    options = {"num_processes": 1, "devices": 1}
    with Job(module, [str(path), *alone], logs=path / "logs_alone", **options) as job:
        job.succeed()
    return path


@pytest.mark.parametrize("case", CASES)
def test_losses_and_evaluation_equal_those_of_one_device(case: str, folder: Path) -> None:
    name, kind, dtype = case.split("/")
    tolerance = TOLERANCES[dtype]
    one, first, second = (
        json.loads((folder / f"{of}_{kind}_{dtype}_{process}.json").read_text())
        for of, process in (("single", 0), (name, 0), (name, 1))
    )
    assert first == second
    assert len(first["losses"]) == 20
    np.testing.assert_allclose(first["losses"], one["losses"], rtol=tolerance)
    assert first["metrics"] == pytest.approx(one["metrics"], rel=tolerance)
    answer = ANSWERS[kind]
    found = [(record["index"], record[answer]) for record in first["records"]]
    assert found == [(record["index"], record[answer]) for record in one["records"]]
