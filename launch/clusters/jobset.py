"""The manifest of a training as a JobSet, Kubernetes' set of jobs that start and fail together.

One job of as many pods as there are processes. JobSet gives them a headless service, so that
process i is found at ``NAME-train-0-i.NAME``; when one fails, all are started again, and resume
from the last checkpoint. A pod that was evicted, or whose program says that it saved after a
signal (``launch.train``'s exit codes), does not count against the restarts.

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

# What a JobSet is made from, read from strings and checked before anything is submitted.

HOME = "/flaxnets"
"""The folder of the image in which programs run."""
JOB = "train"
"""The name of the replicated job, part of its pods' names."""

# What a volume must not be laid over; shared memory has one of its own.
_TAKEN = (HOME, *(f"{HOME}/{folder}" for folder in CODE), "/dev/shm")
_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Kubernetes' quantities, as 8, 500m or 64Gi.
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|[MGTPE]|[KMGTPE]i)?")
# <jobset>-<replicated job>-<job index>-<pod index>, and five characters that a job appends.
_POD_SUFFIX = len(f"-{JOB}-0-") + len("-abcde")


@dataclasses.dataclass(frozen=True)
class Volume:
    """A PersistentVolumeClaim and where its content is seen, an absolute, normalised path."""

    claim: str
    path: str


@dataclasses.dataclass(frozen=True)
class Options:
    """A training as a JobSet.

    Attributes:
      name: of the JobSet, a DNS label.
      image: with flaxnets, as the ``Dockerfile`` builds it.
      arguments: the flags of the program.
      program: the module that each process runs.
      processes: one to a pod; None: as many as the TPU slice has machines, else 1.
      gpus: NVIDIA's, of each process; 0: none.
      tpu: the type of TPU, as ``v5e``; with ``topology``, as ``4x4``.
      namespace: None: the one that kubectl is set to.
      queue: Kueue's LocalQueue; None: no queue.
      volumes: the workdir and the data lie on them.
      environment: variables of each process.
      node_selector: labels that nodes must have.
      cpu: requested by each process, as ``8``; None: not stated.
      memory: requested by and the limit of each process, as ``64Gi``; None: not stated.
      restarts: further attempts after failures; those after a preemption do not count.
      max_run_seconds: after which an attempt saves and the JobSet ends; None: no limit.

    Raises:
      ValueError: options that no cluster would take, or that do not fit together.
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
        """The TPU slice that the processes share, None without one."""
        if self.tpu is None or self.topology is None:
            return None
        return find_slice(self.tpu, self.topology, self.processes)

    @property
    def count(self) -> int:
        """The number of processes."""
        tpu = self.slice
        return tpu.hosts if tpu else self.processes or 1


def parse_volume(value: str) -> Volume:
    """The volume of ``CLAIM:/path``.

    Raises:
      ValueError: no colon, no absolute path, or a claim with a name that there cannot be.
    """
    claim, colon, path = value.partition(":")
    if not claim or not colon or not path.startswith("/"):
        raise ValueError(f"volume: expected CLAIM:/path, received {value!r}")
    _check_name("volume", claim)
    path = posixpath.normpath("/" + path.lstrip("/"))
    for taken in _TAKEN:
        if lies_under(taken, path):
            raise ValueError(
                f"volume: expected a path that leaves the image's own {taken} as it is, received "
                f"{path}"
            )
    return Volume(claim, path)


def _check_name(argument: str, value: str) -> None:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"{argument}: expected the name of a Kubernetes object, of lower-case letters, digits, "
            f"'-' and '.', received {value!r}"
        )


PORT = 8476
"""Where the first process listens for the others."""
SAVED = [138, 143]
"""What launch.train exits with when a signal ended it after a checkpoint."""
GRACE_SECONDS = 300
"""From SIGTERM to SIGKILL: time to end a step and to write a checkpoint to a slow volume."""
USER = 1000
"""The user and group of the image."""


def make_jobset(options: Options) -> dict[str, Any]:
    """The manifest as Kubernetes' API takes it; nothing but dicts, lists, strings and numbers."""
    metadata: dict[str, Any] = {"name": options.name}
    if options.namespace:
        metadata["namespace"] = options.namespace
    if options.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": options.queue}
    tpu = options.slice
    if tpu and tpu.hosts > 1:
        # All pods in one node pool, which is one slice; two pools may have the same topology.
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


def _make_job(options: Options) -> dict[str, Any]:
    """The spec of the ``batch/v1`` Job."""
    job: dict[str, Any] = {
        "completionMode": "Indexed",
        "parallelism": options.count,
        "completions": options.count,
        # A process cannot come back alone: the job fails with its first pod, and JobSet starts all.
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


def _make_pod(options: Options) -> dict[str, Any]:
    """The spec of each pod, one process."""
    selector = dict(options.node_selector)
    security: dict[str, Any] = {"fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"}
    if tpu := options.slice:
        selector["cloud.google.com/gke-tpu-accelerator"] = tpu.type.gke_accelerator
        selector["cloud.google.com/gke-tpu-topology"] = tpu.topology
        # GKE documents its TPU devices for containers of root alone.
        security["runAsUser"] = 0
    pod: dict[str, Any] = {
        # podFailurePolicy asks for it.
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


def _make_container(options: Options) -> dict[str, Any]:
    """The container: the image's own entry point, ``python -m``, with the program and its flags."""
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
        # Of the 64 MB that containers have by default, worker processes and NCCL want more.
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    return container


def _group(options: Options) -> list[str]:
    """The flags by which the processes find each other."""
    if options.program not in GROUP_PROGRAMS:
        return []
    if options.count == 1:
        return ["--cluster=none"]
    if options.slice:
        # GKE tells each pod of a slice its number and the others' names, in TPU_WORKER_ID and
        # TPU_WORKER_HOSTNAMES.
        return ["--cluster=gketpu"]
    # JAX's own detection would need the right to read pods, and another package.
    return [
        f"--coordinator={options.name}-{JOB}-0-0.{options.name}:{PORT}",
        f"--num_processes={options.count}",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]


def _literal(value: str) -> str:
    """A string that Kubernetes, which replaces ``$(NAME)`` and ``$$``, hands on as it is."""
    return value.replace("$", "$$")


def _make_resources(options: Options) -> dict[str, Any]:
    """What a container asks for, and its limits."""
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
