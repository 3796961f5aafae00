"""Settings for all tests: eight simulated devices, and flags that count as parsed."""

import sys
from pathlib import Path

import jax
from absl import flags


def pytest_configure() -> None:
    # Before the first operation, or JAX has counted its devices already.
    jax.config.update("jax_num_cpu_devices", 8)
    # grain reads flags of its own where it starts workers; a program has parsed them by then.
    flags.FLAGS.mark_as_parsed()
    sys.path.insert(0, str(Path(__file__).parent / "flaxnets" / "training"))
