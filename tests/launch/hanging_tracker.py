"""A tracker whose service accepts the connection and never answers."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Hangs:
    """Waits for ever in ``log``."""

    def open(self, workdir: Path, project: str, run: str, config: Mapping[str, Any]) -> str:
        return "run"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        time.sleep(1e6)

    def close(self) -> None:
        pass
