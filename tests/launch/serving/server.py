"""Server of the small models, as a program: ``python -m tests.launch.serving.server``.

Its flags are those of ``launch.serve``; ``SLOW=SECONDS`` in the environment makes each request take
that long.
"""

import os
import sys
import time
from pathlib import Path

from absl import flags

from flaxnets.inference.runtime.results import Prediction
from launch import serve
from tests.launch.serving.models import MeanColour, Steps, Words


class Slow(MeanColour):
    """Classifier that takes its time."""

    name = "slow"

    def predict(self, path: Path) -> Prediction:
        time.sleep(float(os.environ["SLOW"]))
        return super().predict(path)


def main() -> int:
    """Serves until a signal."""
    flags.FLAGS(sys.argv)
    models = [Slow()] if "SLOW" in os.environ else [Words(), Steps(), MeanColour()]
    host = serve.HOST.value
    with serve.listen(host, serve.PORT.value) as listener:
        return serve.serve(models, listener, host, serve.limits_of_flags(), serve.EXAMPLES.value)


if __name__ == "__main__":
    sys.exit(main())
