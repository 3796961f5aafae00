"""Trainings as JobSets: golden manifests, their fields, and the flags of their pods."""

import copy
import re
import signal
import stat
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from flaxnets.training.metric_writer import read_metrics
from launch import processes
from launch.clusters.jobs import OWN_FLAGS, flag_value
from launch.clusters.jobset import SAVED, Volume, make_jobset
from tests.launch.clusters.jobsets import options
from tests.launch.programs import (
    MOVING_SHAPES,
    finish,
    sentence,
    start,
    succeed,
)

GOLDEN = Path(__file__).parent / "golden"
GPU_FLAGS = [
    "--name=lrcn",
    "--image=registry.example/flaxnets:1",
    "--processes=2",
    "--gpus=8",
    "--namespace=research",
    "--queue=gpus",
    "--node_selector=nvidia.com/gpu.product=NVIDIA-H100-80GB-HBM3",
    "--volume=runs:/runs",
    "--volume=videos:/videos",
    "--env=XLA_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true,PRICE=5$",
    "--cpu=32",
    "--memory=256Gi",
    "--max_run_seconds=86400",
    "--",
    "--config=experiments/lrcn_ucf101.py",
    "--workdir=/runs/lrcn",
    "--config.data.root=/videos/ucf101",
]


OPTIONS = {
    "single": options(),
    "tpu": options(name="captions", tpu="v5e", topology="4x4", restarts=5),
    "gpu": options(gpus=4, processes=3, memory="8Gi", cpu="500m", max_run_seconds=60),
}


def job_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the spec of the manifest's only job."""
    (job,) = manifest["spec"]["replicatedJobs"]
    return job["template"]["spec"]


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    (container,) = job_of(manifest)["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("name", ["single", "tpu"])
def test_manifest_is_the_golden_one(name: str) -> None:
    golden = yaml.safe_load((GOLDEN / f"jobset_{name}.yaml").read_text())
    assert make_jobset(OPTIONS[name]) == golden


@pytest.mark.slow
def test_the_program_prints_or_submits_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden = (GOLDEN / "jobset_gpu.yaml").read_text()
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@"\n/bin/cat > {tmp_path}/applied\nexit 3\n')
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
    printed = start("kubernetes", "--dry_run", *GPU_FLAGS)
    empty = start("kubernetes", "--name=a", "--image=b", "--dry_run")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    missing = start("kubernetes", *GPU_FLAGS)
    monkeypatch.setenv("PATH", str(tmp_path))
    submitted = finish(start("kubernetes", *GPU_FLAGS))
    assert succeed(printed) == golden
    assert submitted.returncode == 3, submitted.stderr
    assert submitted.stdout == "apply -f -\n"
    assert (tmp_path / "applied").read_text() == golden
    assert sentence(finish(missing)) == (
        "error: kubectl is not on the PATH; install it, or print the manifest with --dry_run"
    )
    message = "error: expected the flags of launch.train after --, received none"
    assert sentence(finish(empty)) == message


@pytest.mark.parametrize("name", OPTIONS)
def test_job_is_valid_for_kubernetes(name: str) -> None:
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "job"},
        "spec": job_of(make_jobset(OPTIONS[name])),
    }
    kubernetes_validate.validate(job, "1.37", strict=True)
    # The validator detects a misspelt field and a wrong type, deep inside.
    misspelt = copy.deepcopy(job)
    misspelt["spec"]["template"]["spec"]["terminationGraceSeconds"] = 1
    mistyped = copy.deepcopy(job)
    mistyped["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] = "143"
    for wrong in (misspelt, mistyped):
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, "1.37", strict=True)


ACTIONS = re.compile(
    "FailJobSet|RestartJobSet|RestartJobSetAndIgnoreMaxRestarts|RestartJob"
    "|RestartJobAndIgnoreMaxRestarts"
)
REASONS = re.compile(
    "BackoffLimitExceeded|DeadlineExceeded|FailedIndexes|MaxFailedIndexesExceeded|PodFailurePolicy"
)
RULE = {
    "name": re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?"),
    "action": ACTIONS,
    "onJobFailureReasons": [REASONS],
    "targetReplicatedJobs": [str],
}
JOBSET = {
    "apiVersion": re.compile("jobset.x-k8s.io/v1alpha2"),
    "kind": re.compile("JobSet"),
    "metadata": dict,
    "spec": {
        "replicatedJobs": [
            {"name": str, "groupName": str, "replicas": int, "template": {"spec": dict}}
        ],
        "network": {
            "enableDNSHostnames": bool,
            "publishNotReadyAddresses": bool,
            "subdomain": str,
        },
        "failurePolicy": {
            "maxRestarts": int,
            "restartStrategy": re.compile("Recreate|BlockingRecreate"),
            "rules": [RULE],
        },
        "successPolicy": dict,
        "suspend": bool,
        "ttlSecondsAfterFinished": int,
    },
}


def differences(value: Any, schema: Any, path: str = "") -> list[str]:
    """Returns the fields and types of a value that the schema does not have."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [path]
        found = [f"{path}.{name}" for name in value if name not in schema]
        for name in value.keys() & schema.keys():
            found += differences(value[name], schema[name], f"{path}.{name}")
        return sorted(found)
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [path]
        return [found for item in value for found in differences(item, schema[0], f"{path}[]")]
    if isinstance(schema, re.Pattern):
        return [] if isinstance(value, str) and schema.fullmatch(value) else [path]
    return [] if type(value) is schema else [path]


@pytest.mark.parametrize("name", OPTIONS)
def test_jobset_has_the_fields_of_its_api(name: str) -> None:
    """Fields of ``JobSetSpec``, ``ReplicatedJob``, ``Network`` and ``FailurePolicy``.

    Copied by hand, with the rules' actions and reasons, from api/jobset/v1alpha2/jobset_types.go
    and pkg/webhooks/jobset_webhook.go of kubernetes-sigs/jobset at 08dfbdf (0.13 development).
    """
    manifest = make_jobset(OPTIONS[name])
    assert differences(manifest, JOBSET) == []
    policy = manifest["spec"]["failurePolicy"]
    policy["rules"][0]["action"] = "Restart"
    policy["maxRestart"] = policy.pop("maxRestarts")
    assert differences(manifest, JOBSET) == [
        ".spec.failurePolicy.maxRestart",
        ".spec.failurePolicy.rules[].action",
    ]


def test_one_failure_ends_the_job_and_saved_ones_do_not_count() -> None:
    manifest = make_jobset(OPTIONS["gpu"])
    job = job_of(manifest)
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"] == 3
    assert job["backoffLimit"] == 0
    evicted, saved = job["podFailurePolicy"]["rules"]
    assert evicted["action"] == saved["action"] == "FailJob"
    # Kubernetes requires them sorted.
    assert saved["onExitCodes"]["values"] == SAVED == sorted(SAVED)
    assert set(SAVED) == {128 + n for n in (signal.SIGHUP, signal.SIGUSR1, signal.SIGTERM)}
    assert saved["onExitCodes"]["containerName"] == container_of(manifest)["name"]
    first, last = manifest["spec"]["failurePolicy"]["rules"]
    assert first["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert first["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert (last["action"], last["onJobFailureReasons"]) == ("FailJobSet", ["DeadlineExceeded"])
    assert job["activeDeadlineSeconds"] == 60
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def expand(args: list[str], environment: dict[str, str]) -> list[str]:
    """Expands arguments as Kubernetes does: ``$(NAME)`` to its value, ``$$`` to ``$``."""

    def replace(found: re.Match[str]) -> str:
        return "$" if found[0] == "$$" else environment[found[1]]

    return [re.sub(r"\$\$|\$\((\w+)\)", replace, arg) for arg in args]


def test_pods_are_told_who_they_are() -> None:
    arguments = ["--workdir=/runs/a b", "--config.note=$(JOB_COMPLETION_INDEX) $$5 $HOME"]
    container = container_of(make_jobset(options(arguments=arguments, processes=3)))
    for index in range(3):
        program, *flags = expand(container["args"], {"JOB_COMPLETION_INDEX": str(index)})
        assert program == "launch.train"
        assert flags[:2] == arguments
        # <jobset>-<replicated job>-<job index>-<pod index>.<subdomain>, the jobset's own name.
        assert flag_value(flags, "coordinator") == "smoke-train-0-0.smoke:8476"
        assert flag_value(flags, "num_processes") == "3"
        assert flag_value(flags, "process_id") == str(index)
    assert "command" not in container
    own = (processes.COORDINATOR, processes.NUM_PROCESSES, processes.PROCESS_ID, processes.CLUSTER)
    assert {flag.name for flag in own} == set(OWN_FLAGS)
    assert container_of(make_jobset(options()))["args"][-1] == "--cluster=none"
    other = options(program="launch.plan")
    assert container_of(make_jobset(other))["args"][-1] == "--workdir=/runs/smoke"


@pytest.mark.parametrize(
    ("tpu", "topology", "processes_", "hosts", "chips", "accelerator"),
    [
        ("v5e", "1x1", None, 1, 1, "tpu-v5-lite-podslice"),
        ("v5e", "2x4", None, 1, 8, "tpu-v5-lite-podslice"),
        ("v6e", "2x4", 2, 2, 4, "tpu-v6e-slice"),
        ("v6e", "16x16", 64, 64, 4, "tpu-v6e-slice"),
        ("v4", "2x2x2", None, 2, 4, "tpu-v4-podslice"),
        ("v5p", "2x2x1", None, 1, 4, "tpu-v5p-slice"),
        ("v5p", "4x4x12", 48, 48, 4, "tpu-v5p-slice"),
    ],
)
def test_tpu_slices_have_their_machines(
    tpu: str, topology: str, processes_: int | None, hosts: int, chips: int, accelerator: str
) -> None:
    """Machines of https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus."""
    manifest = make_jobset(options(tpu=tpu, topology=topology, processes=processes_))
    job, container = job_of(manifest), container_of(manifest)
    assert job["completions"] == hosts
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert job["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    assert container["args"][-1] == ("--cluster=gketpu" if hosts > 1 else "--cluster=none")
    assert ("annotations" in manifest["metadata"]) == (hosts > 1)


def test_names_fit_into_those_of_pods() -> None:
    """JobSet refuses names whose pods' names, with five characters more, exceed 63."""
    longest = "a" * (63 - len("-train-0-99-abcde"))
    options(name=longest, processes=100)
    with pytest.raises(ValueError, match=r"^name: expected up to 46 lower-case"):
        options(name=longest + "a", processes=100)


@pytest.mark.stress
def test_two_pods_train_as_one_run(tmp_path: Path) -> None:
    """The pods' flags form one run, with loopback in place of the cluster's host names."""
    arguments = [MOVING_SHAPES, f"--workdir={tmp_path}/run"]
    volumes = [Volume("runs", str(tmp_path))]
    manifest = make_jobset(options(arguments=arguments, volumes=volumes, processes=2))
    pods = []
    for index in ("0", "1"):
        args = expand(container_of(manifest)["args"], {"JOB_COMPLETION_INDEX": index})
        program = args[0].removeprefix("launch.")
        local = [arg.replace("smoke-train-0-0.smoke:", "127.0.0.1:") for arg in args[1:]]
        pods.append(start(program, *local))
    for pod in pods:
        succeed(pod)
    steps = [r["step"] for r in read_metrics(tmp_path / "run") if r["split"] == "validation"]
    assert steps[-1] == 6
