r"""Submits a training to a Kubernetes cluster as a JobSet.

    python -m launch.kubernetes --name=lrcn --image=REGISTRY/flaxnets --processes=2 --gpus=8 \
        --volume=runs:/runs --volume=videos:/videos -- --config=experiments/lrcn_ucf101.py \
        --workdir=/runs/lrcn --config.data.root=/videos/ucf101

    python -m launch.kubernetes --name=lrcn --image=REGISTRY/flaxnets --tpu=v5e --topology=4x4 …

The flags after ``--`` are those of ``launch.train``, or of the program that ``--program`` names.
The manifest goes to ``kubectl apply``; ``--dry_run`` prints it instead. The cluster needs JobSet
(0.6 or newer, https://jobset.sigs.k8s.io). The ``Dockerfile`` builds the image, which holds the
code and the experiments. The claims of ``--volume`` must exist; with several processes they must be
ReadWriteMany, since all processes share the workdir.

When a process fails, all restart and resume, up to ``--restarts`` times. Restarts after an eviction
or a saved checkpoint do not count. To follow and to stop the training:

    kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=lrcn --prefix
    kubectl delete jobset lrcn

The exit code is kubectl's.
"""

import shutil
import subprocess
from collections.abc import Sequence

import yaml
from absl import flags

from launch import program
from launch.clusters.jobs import parse_pairs
from launch.clusters.jobset import KubernetesJob, make_jobset, parse_volume

NAME = flags.DEFINE_string(
    "name", None, "Name of the JobSet, and part of its pods' names.", required=True
)
IMAGE = flags.DEFINE_string(
    "image", None, "Container image, built by the Dockerfile.", required=True
)
PROCESSES = flags.DEFINE_integer(
    "processes",
    None,
    "Number of processes, one per pod; default: the machines of the TPU slice, else 1.",
    lower_bound=1,
)
GPUS = flags.DEFINE_integer("gpus", 0, "NVIDIA GPUs of each process.", lower_bound=0)
TPU = flags.DEFINE_string("tpu", None, "TPU type on GKE: v4, v5e, v5p or v6e.")
TOPOLOGY = flags.DEFINE_string("topology", None, "Topology of the TPU slice, as 4x4 or 2x2x4.")
NAMESPACE = flags.DEFINE_string("namespace", None, "Kubernetes namespace; default: kubectl's.")
QUEUE = flags.DEFINE_string("queue", None, "Kueue's LocalQueue that admits the JobSet.")
VOLUME = flags.DEFINE_multi_string(
    "volume",
    [],
    "CLAIM:/path mounts a PersistentVolumeClaim, for the workdir and the data",
)
ENV = flags.DEFINE_list("env", [], "A=B,C=D: environment variables of each process.")
NODE_SELECTOR = flags.DEFINE_list(
    "node_selector", [], "A=B,C=D: labels that nodes must have, as the type of their GPUs."
)
CPU = flags.DEFINE_string("cpu", None, "CPU request of each process, as 8.")
MEMORY = flags.DEFINE_string("memory", None, "Memory request and limit of each process, as 64Gi.")
RESTARTS = flags.DEFINE_integer("restarts", 3, "Most restarts after failures.", lower_bound=0)
MAX_RUN_SECONDS = flags.DEFINE_integer(
    "max_run_seconds",
    None,
    "Time limit in seconds, after which the run saves and the JobSet ends.",
    lower_bound=1,
)
PROGRAM = flags.DEFINE_string("program", "launch.train", "Module that each process runs.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the manifest instead of submitting it.")


def main(argv: Sequence[str]) -> int:
    """Submits or prints the manifest; returns the exit code of kubectl."""
    job = KubernetesJob(
        name=NAME.value,
        image=IMAGE.value,
        arguments=argv,
        program=PROGRAM.value,
        processes=PROCESSES.value,
        gpus=GPUS.value,
        tpu=TPU.value,
        topology=TOPOLOGY.value,
        namespace=NAMESPACE.value,
        queue=QUEUE.value,
        volumes=[parse_volume(value) for value in VOLUME.value],
        environment=parse_pairs("env", ENV.value),
        node_selector=parse_pairs("node_selector", NODE_SELECTOR.value),
        cpu=CPU.value,
        memory=MEMORY.value,
        restarts=RESTARTS.value,
        max_run_seconds=MAX_RUN_SECONDS.value,
    )
    manifest = yaml.safe_dump(make_jobset(job), sort_keys=False)
    if DRY_RUN.value:
        print(manifest, end="")
        return 0
    if shutil.which("kubectl") is None:
        raise ValueError(
            "kubectl is not on the PATH; install it, or print the manifest with --dry_run"
        )
    return subprocess.run(["kubectl", "apply", "-f", "-"], input=manifest, text=True).returncode


if __name__ == "__main__":
    program.run(main)
