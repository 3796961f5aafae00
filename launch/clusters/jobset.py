"""Training as a Kubernetes JobSet: its options, checked before submission, and its manifest.

The JobSet has one job with one pod per process. Its headless service names process i
``NAME-train-0-i.NAME``. When one pod fails, JobSet restarts all of them, and they resume from the
last checkpoint. A restart does not count against the limit when the pod was evicted, or when its
exit code says that it saved a checkpoint after a signal (see ``launch.train``).

Source of the fields: https://jobset.sigs.k8s.io and api/jobset/v1alpha2/jobset_types.go of
kubernetes-sigs/jobset; 0.6 and newer have all of them. TPUs: GKE's "Deploy TPU workloads" and the
example ``tpu-multislice`` of JobSet.
"""

import dataclasses
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from launch.clusters.jobs import (
    CODE,
    GROUP_PROGRAMS,
    check_label,
    check_program,
    lies_under,
    workdir_of,
)
from launch.clusters.tpu_types import Slice, find_slice

HOME = "/flaxnets"
"""Folder of the image in which programs run."""
JOB = "train"
"""Name of the replicated job, part of its pods' names."""
PORT = 8476
"""Port on which the first process listens for the others."""
SAVED = [129, 138, 143]
"""Exit codes of ``launch.train`` after a signal and a saved checkpoint."""
GRACE_SECONDS = 300
"""Time from SIGTERM to SIGKILL: enough to end a step and write a checkpoint to a slow volume."""
USER = 1000
"""User and group id of the image."""

# Paths that a volume must not hide: the image's code, and shared memory, which is mounted already.
_TAKEN = (HOME, *(f"{HOME}/{folder}" for folder in CODE), "/dev/shm")
_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Kubernetes' quantities, as 8, 500m or 64Gi.
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|[MGTPE]|[KMGTPE]i)?")
# <jobset>-<replicated job>-<job index>-<pod index>, and five characters that a job appends.
_POD_SUFFIX = len(f"-{JOB}-0-") + len("-abcde")


@dataclasses.dataclass(frozen=True)
class Volume:
    """A PersistentVolumeClaim and its mount path, absolute and normalised."""

    claim: str
    path: str


@dataclasses.dataclass(frozen=True)
class KubernetesJob:
    """A training as a JobSet.

    Attributes:
      name: name of the JobSet, a DNS label.
      image: container image with flaxnets, as the ``Dockerfile`` builds it.
      arguments: flags of the program.
      program: module that each process runs.
      processes: number of processes, one per pod; None: the machines of the TPU slice, else 1.
      gpus: NVIDIA GPUs of each process.
      tpu: TPU type, as ``v5e``; needs ``topology``.
      topology: topology of the TPU slice, as ``4x4``.
      namespace: Kubernetes namespace; None: kubectl's default.
      queue: Kueue's LocalQueue; None: no queue.
      volumes: volumes that hold the workdir and the data.
      environment: environment variables of each process.
      node_selector: labels that nodes must have.
      cpu: CPU request of each process, as ``8``; None: none.
      memory: memory request and limit of each process, as ``64Gi``; None: none.
      restarts: most restarts after failures; restarts after a preemption do not count.
      max_run_seconds: time limit, after which the run saves and the JobSet ends; None: no limit.

    Raises:
      ValueError: options that Kubernetes would refuse, or that contradict each other.
    """

    name: str
    image: str
    arguments: Sequence[str]
    program: str = "launch.train"
    processes: int | None = None
    gpus: int = 0
    tpu: str | None = None
    topology: str | None = None
    namespace: str | None = None
    queue: str | None = None
    volumes: Sequence[Volume] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cpu: str | None = None
    memory: str | None = None
    restarts: int = 3
    max_run_seconds: int | None = None

    def __post_init__(self) -> None:
        if self.gpus and self.tpu:
            raise ValueError("gpus, tpu: expected one of them, received both")
        if bool(self.tpu) != bool(self.topology):
            raise ValueError("tpu, topology: expected both or none, received one of them")
        check_label("name", self.name, longest=63 - _POD_SUFFIX - len(str(self.count - 1)))
        if not self.image or re.search(r"\s", self.image):
            raise ValueError(f"image: expected REPOSITORY[:TAG], received {self.image!r}")
        for argument, name in (("namespace", self.namespace), ("queue", self.queue)):
            if name is not None:
                _check_name(argument, name)
        for argument, quantity in (("cpu", self.cpu), ("memory", self.memory)):
            if quantity is not None and not _QUANTITY.fullmatch(quantity):
                raise ValueError(
                    f"{argument}: expected a quantity as 8, 500m or 64Gi, received {quantity!r}"
                )
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"env: expected the name of a variable, received {name!r}")
        paths = [volume.path for volume in self.volumes]
        if len(set(paths)) < len(paths):
            raise ValueError(f"volume: expected a path once, received {', '.join(paths)}")
        check_program(self.program, self.arguments, self.count)
        workdir = workdir_of(self.arguments, HOME)
        if not any(lies_under(workdir, path) for path in paths):
            raise ValueError(
                f"workdir: expected a folder on a volume ({', '.join(paths) or 'none given'}), "
                f"since a pod's own disk is lost with it, received {workdir}"
            )

    @property
    def slice(self) -> Slice | None:
        """Returns the TPU slice that the processes share; None without one."""
        if self.tpu is None or self.topology is None:
            return None
        return find_slice(self.tpu, self.topology, self.processes)

    @property
    def count(self) -> int:
        """Returns the number of processes."""
        tpu = self.slice
        return tpu.hosts if tpu else self.processes or 1


def parse_volume(value: str) -> Volume:
    """Returns the volume of ``CLAIM:/path``.

    Raises:
      ValueError: no colon, no absolute path, an invalid claim name, or a path that hides the
        image's code.
    """
    claim, colon, path = value.partition(":")
    if not claim or not colon or not path.startswith("/"):
        raise ValueError(f"volume: expected CLAIM:/path, received {value!r}")
    _check_name("volume", claim)
    path = posixpath.normpath("/" + path.lstrip("/"))
    for taken in _TAKEN:
        if lies_under(taken, path):
            raise ValueError(
                f"volume: expected a path that does not hide {taken} of the image, received {path}"
            )
    return Volume(claim, path)


def _check_name(argument: str, value: str) -> None:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{argument}: expected the name of a Kubernetes object, of lower-case letters, digits, "
            f"'-' and '.', received {value!r}"
        )


def make_jobset(options: KubernetesJob) -> dict[str, Any]:
    """Returns the manifest as Kubernetes' API takes it: dicts, lists, strings and numbers."""
    metadata: dict[str, Any] = {"name": options.name}
    if options.namespace:
        metadata["namespace"] = options.namespace
    if options.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": options.queue}
    tpu = options.slice
    if tpu and tpu.hosts > 1:
        # One node pool is one slice. Two pools may have the same topology, so pin all pods to one.
        metadata["annotations"] = {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        }
    rules: list[dict[str, Any]] = [
        {
            "name": "savedOrEvicted",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["PodFailurePolicy"],
        }
    ]
    if options.max_run_seconds:
        rules.append(
            {
                "name": "timeIsUp",
                "action": "FailJobSet",
                "onJobFailureReasons": ["DeadlineExceeded"],
            }
        )
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {"maxRestarts": options.restarts, "rules": rules},
            "replicatedJobs": [
                {"name": JOB, "replicas": 1, "template": {"spec": _make_job(options)}}
            ],
        },
    }


def _make_job(options: KubernetesJob) -> dict[str, Any]:
    """Returns the spec of the ``batch/v1`` Job."""
    job: dict[str, Any] = {
        "completionMode": "Indexed",
        "parallelism": options.count,
        "completions": options.count,
        # A process cannot rejoin alone: the first failed pod fails the job, JobSet restarts all.
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onPodConditions": [_condition("DisruptionTarget")]},
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": JOB, "operator": "In", "values": SAVED},
                },
            ]
        },
    }
    if options.max_run_seconds:
        job["activeDeadlineSeconds"] = options.max_run_seconds
    job["template"] = {"spec": _make_pod(options)}
    return job


def _condition(name: str) -> dict[str, str]:
    return {"type": name, "status": "True"}


def _make_pod(options: KubernetesJob) -> dict[str, Any]:
    """Returns the spec of a pod, one process."""
    selector = dict(options.node_selector)
    security: dict[str, Any] = {"fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"}
    if tpu := options.slice:
        selector["cloud.google.com/gke-tpu-accelerator"] = tpu.type.gke_accelerator
        selector["cloud.google.com/gke-tpu-topology"] = tpu.topology
        # GKE documents TPU devices only for containers that run as root.
        security["runAsUser"] = 0
    pod: dict[str, Any] = {
        # podFailurePolicy requires it.
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": security,
    }
    if selector:
        pod["nodeSelector"] = selector
    if options.gpus:
        pod["tolerations"] = [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        ]
    pod["containers"] = [_make_container(options)]
    claims = list(dict.fromkeys(volume.claim for volume in options.volumes))
    pod["volumes"] = [
        *(
            {"name": f"claim-{i}", "persistentVolumeClaim": {"claimName": claim}}
            for i, claim in enumerate(claims)
        ),
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    return pod


def _make_container(options: KubernetesJob) -> dict[str, Any]:
    """Returns the container; the image's entry point is ``python -m``."""
    claims = list(dict.fromkeys(volume.claim for volume in options.volumes))
    container: dict[str, Any] = {
        "name": JOB,
        "image": options.image,
        "args": [
            options.program,
            *(_literal(argument) for argument in options.arguments),
            *_group(options),
        ],
    }
    if options.environment:
        container["env"] = [
            {"name": name, "value": _literal(value)} for name, value in options.environment.items()
        ]
    if resources := _make_resources(options):
        container["resources"] = resources
    container["volumeMounts"] = [
        *(
            {"name": f"claim-{claims.index(volume.claim)}", "mountPath": volume.path}
            for volume in options.volumes
        ),
        # Data-loader workers and NCCL need more than the default 64 MB.
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    return container


def _group(options: KubernetesJob) -> list[str]:
    """Returns the flags by which the processes find each other."""
    if options.program not in GROUP_PROGRAMS:
        return []
    if options.count == 1:
        return ["--cluster=none"]
    if options.slice:
        # GKE gives each pod of a slice TPU_WORKER_ID and TPU_WORKER_HOSTNAMES.
        return ["--cluster=gketpu"]
    # JAX's own detection would need permission to read pods, and another package.
    return [
        f"--coordinator={options.name}-{JOB}-0-0.{options.name}:{PORT}",
        f"--num_processes={options.count}",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]


def _literal(value: str) -> str:
    """Returns the string escaped, since Kubernetes replaces ``$(NAME)`` and ``$$``."""
    return value.replace("$", "$$")


def _make_resources(options: KubernetesJob) -> dict[str, Any]:
    """Returns the resource requests and limits of the container."""
    requests: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    if options.cpu:
        requests["cpu"] = options.cpu
    if options.memory:
        requests["memory"] = limits["memory"] = options.memory
    if options.gpus:
        limits["nvidia.com/gpu"] = options.gpus
    if tpu := options.slice:
        limits["google.com/tpu"] = tpu.chips_per_host
    given = {"requests": requests, "limits": limits}
    return {name: values for name, values in given.items() if values}
