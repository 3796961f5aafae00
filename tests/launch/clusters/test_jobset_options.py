"""Options of a JobSet: refused ones, volumes and pairs."""

from typing import Any

import pytest

from launch.clusters.jobs import parse_pairs
from launch.clusters.jobset import Volume, parse_volume
from tests.launch.clusters.jobsets import options
from tests.launch.programs import MOVING_SHAPES

WORKDIR = "--workdir=/runs/smoke"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "My_run"}, "name: expected up to 47 lower-case letters.*received 'My_run'"),
        ({"name": "1st"}, "name: expected"),
        ({"image": "a b"}, "image: expected REPOSITORY"),
        ({"gpus": 8, "tpu": "v5e", "topology": "4x4"}, "gpus, tpu: expected one of them"),
        ({"tpu": "v5e"}, "tpu, topology: expected both"),
        ({"topology": "4x4"}, "tpu, topology: expected both"),
        ({"tpu": "v5", "topology": "4x4"}, "tpu: unknown 'v5'; did you mean 'v5.'"),
        ({"tpu": "a100", "topology": "4x4"}, "tpu: unknown 'a100'; there are v4, v5e, v5p, v6e"),
        ({"tpu": "v5e", "topology": "3x3"}, "topology: expected one of 1x1, .* received '3x3'"),
        ({"tpu": "v5p", "topology": "4x4"}, "topology: expected .* AxBxC .* received '4x4'"),
        ({"tpu": "v5p", "topology": "4x4x6"}, "multiples of 4"),
        ({"tpu": "v5p", "topology": "8x4x4"}, "A <= B <= C"),
        ({"tpu": "v4", "topology": "16x16x20"}, "up to 4096 chips for v4"),
        (
            {"tpu": "v5e", "topology": "4x4", "processes": 2},
            r"processes: expected 4, .* v5e slice of 4x4 \(16 chips\), received 2",
        ),
        ({"tpu": "v5e", "topology": "2x4", "processes": 3}, "processes: expected 1 or 2"),
        ({"namespace": "Mine"}, "namespace: expected"),
        ({"queue": "a b"}, "queue: expected"),
        ({"cpu": "many"}, "cpu: expected a quantity"),
        ({"memory": "64GB"}, "memory: expected a quantity as 8, 500m or 64Gi, received '64GB'"),
        ({"environment": {"1A": "x"}}, "env: expected the name of a variable"),
        ({"volumes": [Volume("a", "/runs"), Volume("b", "/runs")]}, "volume: expected a path once"),
        ({"volumes": []}, r"workdir: expected a folder on a volume \(none given\), since a pod's"),
        ({"arguments": ["--workdir=/elsewhere/a"]}, r"volume \(/runs\), .*received /elsewhere/a"),
        ({"arguments": ["--workdir=/runs/../a"]}, "received /a"),
        ({"arguments": ["--workdir=runs/a"]}, "received /flaxnets/runs/a"),
        ({"arguments": ["--workdir=/runs2"]}, "received /runs2"),
        ({"arguments": []}, "expected the flags of launch.train after --, received none"),
        ({"arguments": ["file"]}, "expected flags .* after --, received 'file'"),
        ({"arguments": [MOVING_SHAPES]}, "expected --workdir=DIR among the flags"),
        ({"arguments": [WORKDIR, "--process_id=1"]}, "--process_id: set by the launcher"),
        ({"program": "launch.trian"}, "program: expected a module as launch.train"),
        ({"program": "os"}, "program: expected a module"),
        ({"program": "launch.plan", "processes": 2}, "launch.evaluate for 2 processes, received"),
    ],
)
def test_what_no_cluster_would_take_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options(**changes)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("runs", "expected CLAIM:/path, received 'runs'"),
        (":/runs", "expected CLAIM:/path"),
        ("runs:relative", "expected CLAIM:/path"),
        ("Runs:/runs", "expected the name of a Kubernetes object"),
        ("runs:/", "does not hide /flaxnets of the image"),
        ("runs:/flaxnets", "does not hide /flaxnets of the image"),
        ("videos:/flaxnets/data/", "does not hide /flaxnets/data of the image"),
    ],
)
def test_invalid_volumes(value: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^volume: .*{message}"):
        parse_volume(value)


def test_volumes_and_pairs() -> None:
    assert parse_volume("runs:/runs/") == Volume("runs", "/runs")
    runs = parse_volume("runs:/flaxnets/runs")
    options(volumes=[runs], arguments=["--workdir", "runs/a"])
    assert parse_pairs("env", ["A=B=C", "D="]) == {"A": "B=C", "D": ""}
    for items in (["A"], ["=B"], ["A=1", "A=2"]):
        with pytest.raises(ValueError, match=r"^env: expected"):
            parse_pairs("env", items)
