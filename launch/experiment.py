"""Experiments by the path of their file: from the flag, and again from a workdir."""

import hashlib
import importlib.util
import sys
from pathlib import Path

from flaxnets.training.config import Config, update
from flaxnets.training.workdir import Workdir


def load_experiment(spec: str) -> Config:
    """The configuration that ``FILE[:variant]`` describes.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file has no ``get_config`` or returns no ``Config``.
    """
    name, _, variant = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"--config={spec}: no file {path}; expected the path of an experiment, as "
            "experiments/lrcn_ucf101.py or experiments/lrcn_ucf101.py:smoke"
        )
    module_name = f"experiment_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"--config={spec}: {path} is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses look their module up by name while they are made.
    sys.modules[module_name] = module
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config={spec}: {path} defines no get_config(variant)")
    config = module.get_config(variant or None)
    if not isinstance(config, Config):
        raise ValueError(
            f"--config={spec}: get_config returned {type(config).__name__}, expected a subclass of "
            "flaxnets.training.config.Config"
        )
    return config


def config_of(workdir: Workdir) -> Config:
    """The configuration that a workdir was trained with.

    Raises:
      flaxnets.training.workdir.WorkdirError: no run in it.
      FileNotFoundError: the experiment's file is gone; run from the root of the repository.
      ValueError: the file no longer has a field that the run recorded.
    """
    record = workdir.read_config()
    config = load_experiment(record["experiment"])
    update(config, record["config"])
    return config
