"""Settings for all tests: eight devices, quick compilation and its cache, parsed flags."""

import collections
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from absl import flags

# Most of the tests' time goes into compiling, which without optimisations takes a third of it; the
# programs that tests start read this, too. XLA_FLAGS= runs the tests with all optimisations.
FAST = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):  # Later versions do not know the flag and abort.
    FAST += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FAST)
MAPPINGS = Path("/proc/self/maps")
MOST_MAPPINGS = 20_000


def pytest_configure(config: pytest.Config) -> None:
    # Before the first operation, or JAX has counted its devices already.
    jax.config.update("jax_num_cpu_devices", 8)
    # Many tests train the same small network; each program is compiled once a session. The workers
    # of pytest-xdist and the programs that tests start share the folder by its variable.
    if not hasattr(config, "workerinput"):
        cache = tempfile.TemporaryDirectory(
            prefix="flaxnets-jax-cache-", ignore_cleanup_errors=True
        )
        config.add_cleanup(cache.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    # grain reads flags of its own where it starts workers; a program has parsed them by then.
    flags.FLAGS.mark_as_parsed()


@pytest.hookimpl(tryfirst=True)  # Before the tests are chosen by their marks.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    cases: collections.Counter[str] = collections.Counter()
    for item in items:
        if mark := item.get_closest_marker("slow_after"):
            test = item.nodeid.partition("[")[0]
            cases[test] += 1
            if cases[test] > mark.args[0]:
                item.add_marker(pytest.mark.slow)
    # The longest files first, so that no worker has one of them left when the others are done.
    first = ("launch", "experiments", "training", "encoders")
    items.sort(
        key=lambda item: min(
            (first.index(p) for p in item.path.parts if p in first), default=len(first)
        )
    )


@pytest.fixture(autouse=True, scope="module")
def bounded_mappings() -> Iterator[None]:
    """Drops compiled programs after a file of tests, once they hold many memory mappings.

    Linux allows a process 65,530 of them, and the next program to be compiled would crash it.
    """
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
