"""Compiled programs that outlive the process."""

import jax
from jax.experimental.compilation_cache import compilation_cache


def use_compilation_cache(folder: str) -> None:
    """Keeps programs that took a second or more to compile in a folder, for later processes.

    A program is found again by its code, its options, the devices and the version of JAX. The
    setting is that of the whole process.

    Args:
      folder: made when missing; several processes may share it. Empty: nothing changes.
    """
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        # Or a process that has compiled anything stays with what it had before.
        compilation_cache.reset_cache()
