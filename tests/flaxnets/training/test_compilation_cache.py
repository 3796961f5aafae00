"""The compilation cache stores programs and finds them again."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from flaxnets.training.loop import use_compilation_cache


def test_the_folder_is_filled_from_then_on(tmp_path: Path) -> None:
    settings: Any = jax.config
    before, inputs = settings.jax_compilation_cache_dir, np.ones(3)
    folder = tmp_path / "cache"

    def triple(x: jax.Array) -> jax.Array:
        return 3 * x

    def kept() -> list[str]:
        return [path.name for path in folder.glob("jit_triple-*-cache")]

    try:
        use_compilation_cache("")
        assert settings.jax_compilation_cache_dir == before
        jax.jit(lambda x: 2 * x)(inputs)  # The process has compiled before.
        use_compilation_cache(str(folder))
        jax.jit(triple)(inputs)
        first = kept()
        assert len(first) == 1
        jax.clear_caches()
        jax.jit(triple)(inputs)
        assert kept() == first
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
