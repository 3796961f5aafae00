"""Python and JAX versions that flaxnets is tested with."""

import sys

import jax

PYTHON = ((3, 11), (3, 15))
JAX = ((0, 10, 2), (0, 13))
"""The bounds of pyproject.toml: the first version allowed, and the first one no longer allowed."""


def check_versions() -> None:
    """Checks that Python and JAX lie within the bounds of ``pyproject.toml``.

    Raises:
      ImportError: one of them is older or newer. One sentence: what was found, what is allowed.
    """
    for name, found, (first, end), fix in (
        ("Python", tuple(sys.version_info[:3]), PYTHON, "make PYTHON=python3.13 names another"),
        ("JAX", jax.__version_info__, JAX, f'install one by pip install "{_specifier(JAX)}"'),
    ):
        if not first <= found < end:
            raise ImportError(
                f"flaxnets needs {name} {_dotted(first)} or newer and older than {_dotted(end)}, "
                f"found {_dotted(found)}; {fix}"
            )


def _specifier(bounds: tuple[tuple[int, ...], tuple[int, ...]]) -> str:
    return f"jax>={_dotted(bounds[0])},<{_dotted(bounds[1])}"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
