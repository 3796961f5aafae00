"""What all programs share: flags with clear errors, logging, and exits without a traceback."""

import difflib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from flaxnets.training import distributed
from flaxnets.training.config import Config, UndefinedMethod, flatten
from flaxnets.training.window import NonFiniteLoss
from flaxnets.training.workdir import WorkdirError
from launch.experiment import load_experiment

# Errors whose message is the whole story; any other one is a defect and shows its traceback.
EXPECTED_ERRORS = (ValueError, OSError, WorkdirError, NonFiniteLoss, UndefinedMethod)


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs ``main(positional arguments)`` as an absl program; its result is the exit code."""

    def guarded(argv: Sequence[str]) -> int | None:
        absl_logging.use_absl_handler()
        logging.getLogger().setLevel(logging.INFO)
        # Orbax tells of every file through absl's own logger.
        absl_logging.get_absl_logger().setLevel(logging.ERROR)
        logging.getLogger("jax").setLevel(logging.WARNING)
        try:
            return main(argv[1:])
        except EXPECTED_ERRORS as error:
            if _is_defect(error):
                raise
            logging.getLogger(__name__).debug("failed", exc_info=True)
            who = distributed.describe_process()
            print(f"error: {who}: {error}" if who else f"error: {error}", file=sys.stderr)
            distributed.leave(1)
            return 1

    app.run(guarded, flags_parser=_parse)


def _is_defect(error: BaseException) -> bool:
    """Whether an error of an expected type was raised by foreign code, deep inside a library."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    return "site-packages" in trace.tb_frame.f_code.co_filename


def _parse(argv: Sequence[str]) -> Sequence[str]:
    try:
        return flags.FLAGS(tuple(argv))
    except flags.Error as error:
        print(f"error: {_explain_experiment(argv) or error}", file=sys.stderr)
    except (KeyError, AttributeError) as error:
        explained = _explain_experiment(argv) or _explain_field(argv)
        print(f"error: {explained or error}", file=sys.stderr)
    sys.exit(2)


def _explain_experiment(argv: Sequence[str]) -> str:
    """What the experiment itself says is wrong; the flag wraps it in a traceback."""
    for spec in _values_of_config(argv):
        try:
            load_experiment(spec)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
    return ""


def _explain_field(argv: Sequence[str]) -> str:
    """The sentence for a ``--config.FIELD`` that the configuration does not have."""
    specs = _values_of_config(argv)
    if not specs:
        return "--config.FIELD=… needs --config=FILE before it"
    names = [name for name, _ in flatten(load_experiment(specs[-1]))]
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0].removeprefix("no")
        if not name.startswith("config."):
            continue
        field = name.removeprefix("config.")
        if any(field == known or field.startswith(known + ".") for known in names):
            continue
        near = difflib.get_close_matches(field, names, n=1, cutoff=0.4)
        hint = f"; did you mean --config.{near[0]}?" if near else f"; there are {', '.join(names)}"
        return f"--{name}: no such field of the configuration{hint}"
    return ""


def _values_of_config(argv: Sequence[str]) -> list[str]:
    """The values of ``--config=VALUE`` and ``--config VALUE``."""
    values = []
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            values.append(value if equals else following)
    return [value for value in values if value]


def experiment_of_flag(argv: Sequence[str]) -> tuple[str, Config]:
    """FILE[:variant] of the flag ``--config``, and its configuration with the overrides.

    Args:
      argv: positional arguments; none are expected.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file describes no experiment, or there are positional arguments.
    """
    if argv:
        raise ValueError(f"unexpected arguments: {' '.join(argv)}; flags are --name=value")
    spec = config_flags.get_config_filename(flags.FLAGS["config"])
    config = flags.FLAGS.config
    if not isinstance(config, Config):
        load_experiment(spec)  # Says what the flag keeps quiet about: why it failed.
    return spec, config


def log_to(path: Path) -> None:
    """Also appends this process's log messages to a file."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


def describe_devices() -> str:
    """The devices in words, as ``2 × cpu``."""
    devices: list[Any] = jax.devices()
    return f"{len(devices)} × {devices[0].device_kind}"
