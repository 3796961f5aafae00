"""Cell magic ``%%bash`` of the tutorials' kernels.

IPython's own reads the output in pieces of 100 bytes, which myst-nb shows as lines. It also reads
errors apart, so that they lose their place among the other lines.
"""

import subprocess
import sys

from IPython.core.magic import register_cell_magic


@register_cell_magic
def bash(line: str, cell: str) -> None:
    """Runs a cell and prints what it wrote, errors in their place among the other lines.

    Args:
      line: options of bash, as ``-e``.
      cell: the script.

    Raises:
      subprocess.CalledProcessError: the script failed.
    """
    command = ["bash", *line.split(), "-c", cell]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    sys.stdout.write(done.stdout.decode(errors="replace"))
    done.check_returncode()
