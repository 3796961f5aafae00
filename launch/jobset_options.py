"""What a JobSet is made from, read from strings and checked before anything is submitted."""

import dataclasses
import posixpath
import re
from collections.abc import Mapping, Sequence

from launch.submission import CODE, check_label, check_program, lies_under, workdir_of
from launch.tpu_slices import Slice, find_slice

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
