"""The manifest of a training as a JobSet, Kubernetes' set of jobs that start and fail together.

One job of as many pods as there are processes. JobSet gives them a headless service, so that
process i is found at ``NAME-train-0-i.NAME``; when one fails, all are started again, and resume
from the last checkpoint. A pod that was evicted, or whose program says that it saved after a
signal (``launch.train``'s exit codes), does not count against the restarts.

Source of the fields: https://jobset.sigs.k8s.io and api/jobset/v1alpha2/jobset_types.go of
kubernetes-sigs/jobset; 0.6 and newer have all of them. TPUs: GKE's "Deploy TPU workloads" and the
example ``tpu-multislice`` of JobSet.
"""

from typing import Any

from launch.jobset_options import JOB, Options
from launch.submission import GROUP_PROGRAMS

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
