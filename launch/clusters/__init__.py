"""Jobs of several processes: on this machine, on Slurm, on Kubernetes and on Cloud TPU."""

from launch.clusters.cloud_tpu import TpuJob, delete_command, make_tpu_commands, run_commands
from launch.clusters.jobset import KubernetesJob, Volume, make_jobset, parse_volume
from launch.clusters.local_job import LocalJob, run_with_restarts
from launch.clusters.slurm_job import SlurmJob, make_slurm_script, submit_slurm_job
from launch.clusters.tpu_types import Slice, TpuType, find_accelerator, find_slice

__all__ = [
    "KubernetesJob",
    "LocalJob",
    "Slice",
    "SlurmJob",
    "TpuJob",
    "TpuType",
    "Volume",
    "delete_command",
    "find_accelerator",
    "find_slice",
    "make_jobset",
    "make_slurm_script",
    "make_tpu_commands",
    "parse_volume",
    "run_commands",
    "run_with_restarts",
    "submit_slurm_job",
]
