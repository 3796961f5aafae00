"""Server of the small models, as a program: ``python -m tests.launch.serving.server``.

Its flags are those of ``launch.serve``; ``SLOW=SECONDS`` in the environment leaves one classifier
of images that takes that long.
"""

import os
import sys

from absl import flags

from flaxnets.inference.runtime.models import IMAGE
from launch import serve
from launch.serving.isolation import Isolated
from launch.serving.models import PRELOADED, ServedModel
from tests.launch.serving.models import all_models, classifier


def main() -> int:
    """Serves until a signal."""
    flags.FLAGS(sys.argv)
    slow = float(os.environ.get("SLOW", 0))
    models = [classifier(IMAGE, slow)] if slow else all_models()
    host, limits, isolated = serve.HOST.value, serve.limits_of_flags(), Isolated(PRELOADED)
    with serve.listen(host, serve.PORT.value) as listener:
        served = [ServedModel(model, isolated, limits) for model in models]
        return serve.serve(served, listener, host, limits, serve.EXAMPLES.value)


if __name__ == "__main__":
    sys.exit(main())
