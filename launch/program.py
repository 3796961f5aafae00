"""Shared parts of the programs: the run under absl, errors without a traceback, experiments."""

import ast
import dataclasses
import hashlib
import importlib.util
import logging
import math
import os
import re
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from flaxnets.configuration import nearest
from flaxnets.training import distributed
from flaxnets.training.config import (
    Config,
    UndefinedMethod,
    flatten,
    update,
)
from flaxnets.training.metric_writer import NonFiniteLoss
from flaxnets.training.preemption import SAVED, handled_signals
from flaxnets.training.workdir import SILENT_SECONDS, Workdir, WorkdirError

BREAK_LOCK_AFTER = flags.DEFINE_float(
    "break_lock_after",
    None,
    "Seconds without a sign of life of a machine after which its lock of a workdir is broken.",
    lower_bound=SILENT_SECONDS,
)

# Errors whose message suffices for the user; any other error is a defect and shows its traceback.
EXPECTED_ERRORS = (
    ValueError,
    OSError,
    ModuleNotFoundError,
    WorkdirError,
    NonFiniteLoss,
    UndefinedMethod,
    distributed.LostProcess,
)


class _TupleParser(flags.ArgumentParser):
    """Parser of fields that are tuples: as that of ml_collections, but one flag is the whole value.

    There, a flag that is given again adds to the tuple; here, as for any other field, the last one
    counts, so that a command can be repeated with another value at its end. Texts need no quotes.
    """

    def parse(self, argument: Any) -> tuple[Any, ...]:
        """Returns the tuple of a text as ``1,2``, ``a,b`` or ``('a', 'b')``; empty of "".

        Raises:
          ValueError: brackets or quotes that do not match.
        """
        if not isinstance(argument, str) or re.search(r"[()\[\]'\"]", argument):
            return tuple_parser.TupleParser().parse(argument)
        parts = [part.strip() for part in argument.split(",")]
        return tuple(self._parse_part(part) for part in parts if part)

    def _parse_part(self, text: str) -> Any:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text

    def flag_type(self) -> str:
        """Returns the type's name for ``--help``."""
        return "tuple"


config_flags.register_flag_parser_for_type(tuple, _TupleParser())


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Runs ``main(positional arguments)`` as an absl program; its result is the exit code.

    An error of ``EXPECTED_ERRORS`` is printed as one line ``error: …``; the exit code is 1, or 2
    for a wrong flag.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        code = report_errors(argv)
        if code in SAVED:
            # It is ending, and no further signal may change the exit code, except that after
            # SIGINT alone one that has the run started again still does.
            only = [signal.SIGINT] if code == 128 + signal.SIGINT else handled_signals()
            for number in only:
                signal.signal(number, signal.SIG_IGN)
        return code

    def report_errors(argv: Sequence[str]) -> int | None:
        absl_logging.use_absl_handler()
        logging.getLogger().setLevel(logging.INFO)
        # Orbax logs every file through absl's own logger.
        absl_logging.get_absl_logger().setLevel(logging.ERROR)
        logging.getLogger("jax").setLevel(logging.WARNING)
        try:
            return main(argv[1:])
        except EXPECTED_ERRORS as error:
            if _is_defect(error):
                _leave_others()
                raise
            logging.getLogger(__name__).debug("failed", exc_info=True)
            who = distributed.describe_process()
            print(f"error: {who}: {error}" if who else f"error: {error}", file=sys.stderr)
            code = distributed.LOST_PROCESS if isinstance(error, distributed.LostProcess) else 1
            distributed.leave(code)
            return code
        except KeyboardInterrupt as error:
            number = int(getattr(error, "signal", signal.SIGINT))
            print(f"interrupted by signal {number}", file=sys.stderr)
            distributed.leave(128 + number)
            return 128 + number
        except Exception:
            problem = _find_missing_platform()
            if not problem:
                _leave_others()
                raise
            print(f"error: {problem}", file=sys.stderr)
            return 1

    app.run(guarded, flags_parser=_parse)


def _leave_others() -> None:
    """Shows the error that is handled and exits, if there are other processes.

    An orderly exit would wait for them, and they wait for this one.
    """
    if distributed.describe_process():
        traceback.print_exc()
        distributed.leave(1)


def _find_missing_platform() -> str:
    """Returns why JAX has no device of the platform in ``JAX_PLATFORMS``; "" if it has one."""
    wanted = os.environ.get("JAX_PLATFORMS", "")
    try:
        if wanted:
            jax.devices()
    except Exception as error:  # Of several types, one without a message.
        reason = str(error).splitlines()[0] if str(error) else "its plugin is not installed"
        return (
            f"JAX_PLATFORMS={wanted}: expected a platform that JAX has here, received none "
            f"({reason}); unset it, or set JAX_PLATFORMS=cpu, or install JAX for the device "
            "(pip install -e '.[cuda]' or '.[tpu]')"
        )
    return ""


def _is_defect(error: BaseException) -> bool:
    """Returns True if a library or a failed import raised the error, not our own check."""
    if isinstance(error, ModuleNotFoundError):
        # Python's own has a name; ours, of a missing extra, has only a message.
        return error.name is not None
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
    """Returns the experiment's own error message; the flag would wrap it in a traceback."""
    for spec in _values_of_config(argv):
        try:
            load_experiment(spec)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
    return ""


def _explain_field(argv: Sequence[str]) -> str:
    """Returns the error message for a ``--config.FIELD`` that the configuration does not have."""
    specs = _values_of_config(argv)
    if not specs:
        return "--config.FIELD: expected --config=FILE before it, received none"
    names = [name for name, _ in flatten(load_experiment(specs[-1]))]  # Tables count as one.
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0].removeprefix("no")
        if not name.startswith("config."):
            continue
        field = name.removeprefix("config.")
        tables = [known for known in names if field.startswith(known + ".")]
        if tables:
            value = dict(flatten(load_experiment(specs[-1])))[tables[0]]
            if isinstance(value, Mapping) and field.removeprefix(tables[0] + ".") not in value:
                return (
                    f"--{name}: {tables[0]} is a table whose keys stand in the experiment's file; "
                    f"expected one of {', '.join(value) or 'none'}"
                )
            continue
        if field in names:
            continue
        # The last part of a nested field alone is less similar than the default cutoff.
        hint = nearest(field, names, cutoff=0.4)
        return f"--{name}: no such field of the configuration{hint}"
    return ""


def _values_of_config(argv: Sequence[str]) -> list[str]:
    """Returns the values of ``--config=VALUE`` and ``--config VALUE``."""
    values = []
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            values.append(value if equals else following)
    return [value for value in values if value]


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises ValueError if there are positional arguments."""
    if argv:
        raise ValueError(f"unexpected arguments: {' '.join(argv)}; flags are --name=value")


def experiment_of_flag(argv: Sequence[str]) -> tuple[str, Config]:
    """Returns FILE[:variant] of the flag ``--config``, and its configuration with all overrides.

    Args:
      argv: positional arguments; must be empty.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file describes no experiment, or there are positional arguments.
    """
    refuse_arguments(argv)
    spec = config_flags.get_config_filename(flags.FLAGS["config"])
    config = flags.FLAGS.config
    if not isinstance(config, Config):
        load_experiment(spec)  # The flag hides the reason; this raises it.
    return spec, conform_texts(config)


def conform_texts(config: Any) -> Any:
    """Returns a configuration whose tuples of texts hold texts alone, changed in place.

    A flag's ``23,24`` is parsed as two numbers, as its parser does not know the field's type.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            conform_texts(value)
        elif hints[field.name] == tuple[str, ...]:
            setattr(config, field.name, tuple(map(str, value)))
    return config


def load_experiment(spec: str) -> Config:
    """Returns the configuration of the experiment ``FILE[:variant]``.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file has no ``get_config`` or returns no ``Config``.
    """
    name, _, variant = spec.partition(":")
    path = Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"--config={spec}: no file {path}; expected the path of an experiment, as "
            "experiments/lrcn_ucf101.py or experiments/lrcn_ucf101.py:smoke"
        )
    module_name = f"experiment_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    module_spec = importlib.util.spec_from_file_location(module_name, path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"--config={spec}: {path} is no Python file")
    module = importlib.util.module_from_spec(module_spec)
    # Dataclasses look their module up by name while they are created.
    sys.modules[module_name] = module
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"--config={spec}: {path} defines no get_config(variant)")
    config = module.get_config(variant or None)
    if not isinstance(config, Config):
        raise ValueError(
            f"--config={spec}: get_config returned {type(config).__name__}, expected a subclass of "
            "flaxnets.training.config.Config"
        )
    return config


def config_of(workdir: Workdir) -> Config:
    """Returns the configuration with which a workdir was trained.

    Raises:
      flaxnets.training.workdir.WorkdirError: the workdir holds no run.
      FileNotFoundError: no such experiment file; run from the root of the repository.
      ValueError: the experiment no longer has a field that the run recorded.
    """
    record = workdir.read_config()
    config = load_experiment(record["experiment"])
    update(config, record["config"])
    return config


def open_workdir(path: Path | str, *, writes: bool = True) -> Workdir:
    """Returns a workdir whose lock is broken after the time in ``--break_lock_after``."""
    given = BREAK_LOCK_AFTER.value
    return Workdir(path, writes=writes, break_lock_after=math.inf if given is None else given)


def log_to(path: Path) -> None:
    """Appends the log messages of this process to a file as well."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


def describe_devices() -> str:
    """Returns the devices in words, as ``2 × cpu``."""
    devices: list[Any] = jax.devices()
    return f"{len(devices)} × {devices[0].device_kind}"
