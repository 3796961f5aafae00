"""Shared parts of the programs: flags, errors without a traceback, experiments and their code.

A workdir names the file of its experiment, and may name parts as ``package.module:Name``. Both are
Python code that runs when the workdir is used. ``config_of`` imports only what lies in this
repository, outside of the folders of runs, or what the user has named on the command line.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.machinery
import importlib.util
import json
import logging
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags
from ml_collections.config_flags import tuple_parser

from flaxnets.configuration import local_path
from flaxnets.training import distributed
from flaxnets.training.config import (
    Config,
    UndefinedMethod,
    localize,
    set_chosen,
    set_runtime,
    update,
)
from flaxnets.training.metric_writer import NonFiniteLoss, RecordFile
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

ROOT = Path(__file__).resolve().parents[1]
"""Root of the repository, or folder of the installed packages."""
LIBRARIES = ("flax", "flaxnets")
"""Packages whose parts any workdir may name."""
RUNS = "runs"
"""Folder of the repository for workdirs, which may have come from elsewhere."""

# The flags below belong to the programs that define them by these functions.
flags.disclaim_key_flags()


class _PathParser(flags.ArgumentParser[str]):
    """Parser of flags that are paths."""

    syntactic_help = "a path; ~ is the home folder"

    def parse(self, argument: str) -> str:
        return local_path("path", argument)


def define_path(
    name: str, default: str | None, help: str, *, required: bool = False
) -> flags.FlagHolder[Any]:
    """Defines a flag that is a path: ``~`` is expanded, URLs are refused."""
    return flags.DEFINE(
        _PathParser(), name, default, help, serializer=flags.ArgumentSerializer(), required=required
    )


def define_run(
    help: str = "Folder of the run.", *, several: bool = False, required: bool = True
) -> flags.FlagHolder[Any]:
    """Defines the flags of a program that uses a trained run, and returns ``--workdir``.

    ``--config.FIELD=VALUE`` sets a field that may differ from the run's, ``--experiment`` and
    ``--allow_code`` name code that may run; ``recorded_config`` reads all of them.

    Args:
      help: of ``--workdir``.
      several: ``--workdir`` may be given several times; its value is a list.
      required: False where a shipped model may take the place of a run.
    """
    flags.DEFINE_multi_string(
        "override",
        [],
        "FIELD=VALUE, also written --config.FIELD=VALUE: another value than the run's of a field "
        "that does not change its results, as data.root",
    )
    define_path(
        "experiment", None, "The run's experiment, FILE[:variant], if it is not where it was."
    )
    define_allow_code()
    if several:
        return flags.DEFINE_multi(
            _PathParser(), flags.ArgumentSerializer(), "workdir", None, help, required=required
        )
    return define_path("workdir", None, help, required=required)


def load_model(name: str | None, shipped: str, kind: str, *, step: int | None = None) -> Any:
    """Returns the model of ``--model``, or the shipped one, which is told on standard error.

    Args:
      name: folder or name of a shipped model; None: ``shipped``.
      shipped: name of the default.
      kind: ``predict``, ``caption`` or ``read``, the method that the program needs.
      step: of the checkpoint, where the folder is a workdir.

    Raises:
      ValueError: no such model, or one without that method.
    """
    from flaxnets.inference import load, shipped_models

    if name is None and shipped not in shipped_models() and not Path(shipped).is_dir():
        raise ValueError(
            f"--workdir, --model: expected one of them, since no shipped model {shipped!r} is in "
            "this copy of flaxnets, received neither"
        )
    model = load(name or shipped, step=step, allow_code=bool(flags.FLAGS.allow_code))
    if not hasattr(model, kind):
        other = {"captioning": "launch.caption", "transcription": "launch.read"}.get(
            model.kind, "launch.predict"
        )
        raise ValueError(
            f"--model={name}: expected a model that can {kind}, received one of the kind "
            f"{model.kind}; {other} uses it"
        )
    if name is None:
        print(
            f"neither --workdir nor --model given: using the shipped model {shipped!r} "
            f"({model.name})",
            file=sys.stderr,
        )
    return model


def define_allow_code() -> None:
    """Defines ``--allow_code``."""
    flags.DEFINE_multi_string(
        "allow_code",
        [],
        "FILE or module outside of the repository that the workdir names and that may run",
    )


class _TupleParser(flags.ArgumentParser):
    """Parser of fields that are tuples: as that of ml_collections, but one flag is the whole value.

    There, a flag that is given again adds to the tuple; here, as for any other field, the last one
    counts, so that a command can be repeated with another value at its end. Texts need no quotes.
    """

    def parse(self, argument: Any) -> tuple[Any, ...]:
        """Returns the tuple of a text as ``1,2``, ``a,b`` or ``('a', 'b')``; empty of "".

        Without brackets and quotes its items are texts, to which ``conform_tuples`` gives the
        field's type: 00 and 1e3 may be names.

        Raises:
          ValueError: brackets or quotes that do not match.
        """
        if not isinstance(argument, str) or re.search(r"[()\[\]'\"]", argument):
            return tuple_parser.TupleParser().parse(argument)
        parts = [part.strip() for part in argument.split(",")]
        return tuple(part for part in parts if part)

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
        try:
            code = report_errors(argv)
            sys.stdout.flush()  # Else Python fails to do so when it has ended.
        except BrokenPipeError:
            code = _stop_printing()
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
        # Through absl's own logger Orbax logs every file, and each error that it then raises
        # several times with its traceback: hundreds of lines that would hide our own.
        absl_logging.get_absl_logger().setLevel(logging.CRITICAL)
        # After a failed save its writers are left behind, and tell so through these two.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        sys.unraisablehook = _tell_unraisable
        logging.getLogger("jax").setLevel(logging.WARNING)
        try:
            return main(argv[1:])
        except BrokenPipeError:
            if not _reader_is_gone():
                raise
            return _stop_printing()
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


def _reader_is_gone() -> bool:
    """Returns True if nobody reads the standard output any more, as after ``| head``."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False


def _stop_printing() -> int:
    """Sends the rest of the standard output nowhere; returns the exit code of SIGPIPE."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _tell_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Prints an error that nobody can catch, but for those of writers after a failed save."""
    error = unraisable.exc_value
    if isinstance(error, RuntimeError) and str(error) == "Event loop is closed":
        logging.getLogger(__name__).debug("a writer was left behind: %s", error)
        return
    sys.__unraisablehook__(unraisable)


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


@contextlib.contextmanager
def explained_memory(config: Config) -> Iterator[None]:
    """Turns XLA's error of exhausted memory into one sentence that names what to change.

    Raises:
      ValueError: the memory of a device, or of the host for a CPU, does not suffice.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            f"out of memory with batch_size={config.batch_size} and "
            f"accumulate_steps={config.accumulate_steps}: lower batch_size, raise accumulate_steps "
            "(the batch in as many parts), or recompute activations (model.encoder.remat=full, "
            f"or remat_steps of the recurrent layer): {str(error).splitlines()[0]:.200}"
        ) from error


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
        argv = list(_rewrite(argv))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if _asks_for_fields(argv):
        try:
            code = import_explain().print_fields(argv)
            sys.stdout.flush()
        except BrokenPipeError:
            code = _stop_printing()
        sys.exit(code)
    try:
        return flags.FLAGS(tuple(argv))
    except flags.UnrecognizedFlagError as error:
        explained = import_explain().explain_unknown_flag(argv, error.flagname)
        print(f"error: {explained or error}", file=sys.stderr)
    except flags.Error as error:
        explained = import_explain().explain_flag_error(argv, error)
        print(f"error: {explained or error}", file=sys.stderr)
    except (KeyError, AttributeError) as error:
        explained = import_explain().explain_field(argv)
        print(f"error: {explained or error}", file=sys.stderr)
    sys.exit(2)


HELP = ("help", "helpshort", "helpfull")
"""absl's flags that print the help of a program."""


def _asks_for_fields(argv: Sequence[str]) -> bool:
    """Returns True for ``--config=FILE --help``: the help of an experiment."""
    own = argv[: argv.index("--")] if "--" in argv else argv
    asks = any(word.startswith("-") and word.lstrip("-") in HELP for word in own)
    return asks and "config" in flags.FLAGS and bool(values_of_config(own))


def import_explain() -> Any:
    """Returns the module ``launch.explain``, by name: no training reads the file."""
    return importlib.import_module("launch.explain")


def program_name() -> str:
    """Returns the module of the running program, as ``launch.train``."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).stem


def _rewrite(argv: Sequence[str]) -> Iterator[str]:
    """Yields the arguments in the form that absl knows.

    The file of ``--config`` becomes a local path, which is looked for at the root of the repository
    too. In a program without ``--config``, ``--config.FIELD=VALUE`` becomes
    ``--override=FIELD=VALUE``.
    """
    overrides = "override" in flags.FLAGS and "config" not in flags.FLAGS
    rest = iter(argv)
    for argument in rest:
        if argument == "--":
            yield argument
            yield from rest
            return
        name, equals, value = argument.partition("=")
        flag = name.lstrip("-")
        if name.startswith("-") and flag == "config" and not overrides:
            value = value if equals else next(rest, "")
            yield f"--config={_user_experiment(value)}" if value else argument
        elif name.startswith("-") and flag.startswith("config.") and overrides:
            value = value if equals else next(rest, "")
            yield f"--override={flag.removeprefix('config.')}={value}"
        else:
            yield argument


def _user_experiment(spec: str) -> str:
    """Returns FILE[:variant] of the command line with a local path."""
    name, colon, variant = local_path("--config", spec).partition(":")
    if not Path(name).is_file() and (ROOT / name).is_file():
        name = str(ROOT / name)
    return name + colon + variant


def values_of_config(argv: Sequence[str]) -> list[str]:
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


def parse_share(text: str) -> tuple[int, int]:
    """Returns I and N of ``I/N``, the value of ``--share``.

    Raises:
      ValueError: another form, or an I that is not below N.
    """
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise ValueError(f"--share: expected I/N with 0 <= I < N, as 0/4, received {text!r}")
    return int(first), int(second)


def experiment_of_flag(argv: Sequence[str]) -> tuple[str, Config]:
    """Returns FILE[:variant] of the flag ``--config``, and its configuration with all overrides.

    A file inside the repository is named relative to its root, any other by its absolute path, so
    that the name is valid in any folder.

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
    localize(config)
    return recorded_name(spec), conform_tuples(config)


def conform_tuples(config: Any, prefix: str = "") -> Any:
    """Returns a configuration whose tuples are of their fields' types, changed in place.

    The parser of a flag does not know the field's type: ``23,24`` may be texts or numbers.

    Args:
      config: the configuration.
      prefix: its path, for errors.

    Raises:
      ValueError: an item of another type, or another number of items than the field's.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            conform_tuples(value, f"{name}.")
        elif typing.get_origin(hints[field.name]) is tuple and isinstance(value, tuple):
            kinds = typing.get_args(hints[field.name])
            if kinds[1:] == (...,):
                kinds = kinds[:1] * len(value)
            if len(kinds) != len(value):
                raise ValueError(f"{name}: expected {len(kinds)} values, received {value}")
            items = [_conform(name, *pair) for pair in zip(value, kinds, strict=True)]
            setattr(config, field.name, tuple(items))
    return config


def _conform(name: str, item: Any, kind: Any) -> Any:
    """Returns an item of the tuple ``name`` as the type of the field's items."""
    if kind not in (str, int, float):
        return item
    try:
        made = kind(item)
    except (TypeError, ValueError):
        made = None
    if made is None or (kind is int and not isinstance(item, str) and made != item):
        raise ValueError(f"{name}: expected values of type {kind.__name__}, received {item!r}")
    return made


def recorded_name(spec: str) -> str:
    """Returns FILE[:variant] as a workdir records it; see ``experiment_of_flag``."""
    name, colon, variant = spec.partition(":")
    file = Path(name).resolve()
    name = file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else str(file)
    return name + colon + variant


def load_experiment(spec: str) -> Config:
    """Returns the configuration of the experiment ``FILE[:variant]``; runs the file.

    A relative path starts at the working directory, or else at the root of the repository.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file has no ``get_config`` or returns no ``Config``.
    """
    name, _, variant = spec.partition(":")
    path = Path(name) if Path(name).is_file() else ROOT / name
    if not path.is_file():
        raise FileNotFoundError(
            f"--config={spec}: no file {name}; expected the path of an experiment, as "
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


def recorded_config(workdir: Workdir) -> Config:
    """Returns ``config_of`` a workdir under the flags of ``define_run``."""
    values = flags.FLAGS
    return config_of(
        workdir,
        experiment=values.experiment,
        allowed=values.allow_code,
        overrides=values.override,
    )


def config_of(
    workdir: Workdir,
    *,
    experiment: str | None = None,
    allowed: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Config:
    """Returns the configuration with which a workdir was trained; runs the experiment's file.

    Values that were chosen afterwards, as those of ``launch.tune_search``, take the place of the
    recorded ones, and ``overrides`` that of both.

    Args:
      workdir: of the run.
      experiment: FILE[:variant] in place of the recorded one; may lie anywhere.
      allowed: files and modules outside of the repository that may be imported.
      overrides: ``FIELD=VALUE`` of fields that may differ from the run's.

    Raises:
      flaxnets.training.workdir.WorkdirError: the workdir holds no run.
      FileNotFoundError: no such experiment file.
      ForeignCode: the workdir names code that is not allowed.
      ValueError: the experiment no longer has a field that the run recorded, or an override of a
        field that must not differ.
    """
    record = workdir.read_config()
    source = workdir.path / "config.json"
    spec = experiment or check_experiment(str(record["experiment"]), source, allowed)
    check_parts(record["config"], source, allowed)
    config = load_experiment(spec)
    try:
        update(config, record["config"])
        conform_tuples(config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    try:
        set_chosen(config, workdir.read_chosen())
    except ValueError as error:
        raise ValueError(f"{workdir.path / 'chosen.json'}: {error}") from error
    for override in overrides:
        set_runtime(config, override)
    localize(config)
    return config


class _LogFile(logging.Handler):
    """Appends log messages to a file; one that cannot be written ends or blocks nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = RecordFile(path)

    def emit(self, record: logging.LogRecord) -> None:
        """Appends a message."""
        try:
            line = self.format(record) + "\n"
        except Exception:  # A message that does not fit its arguments: as logging's own handlers.
            self.handleError(record)
            return
        self._file.append(line.encode(errors="backslashreplace"))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


def open_workdir(path: Path | str, *, writes: bool = True) -> Workdir:
    """Returns a workdir whose lock is broken after the time in ``--break_lock_after``."""
    given = BREAK_LOCK_AFTER.value
    return Workdir(path, writes=writes, break_lock_after=math.inf if given is None else given)


class ForeignCode(ValueError):
    """A workdir names code outside of the repository, which the user has not allowed."""


def check_experiment(recorded: str, source: Path, allowed: Sequence[str] = ()) -> str:
    """Returns FILE[:variant] with the absolute path of an experiment that may be run.

    Args:
      recorded: FILE[:variant] as a workdir records it; a relative path starts at the root of the
        repository, never at the working directory.
      source: the file that records it, inside the workdir.
      allowed: files that may be run, too.

    Raises:
      FileNotFoundError: no such file.
      ForeignCode: a file outside of the repository, or in a folder of runs.
    """
    name, colon, variant = recorded.partition(":")
    path = (ROOT / name).resolve()
    own = _is_own(path, source) or any(_names_file(one, path) for one in allowed)
    if not path.is_file():
        raise FileNotFoundError(
            f"{source}: no file {path}, the run's experiment; give --experiment=FILE[:variant]"
        )
    if not own:
        raise ForeignCode(
            f"{source}: names {path} as its experiment, which would be run and is not part of this "
            f"repository; if you trust the file, add --allow_code={shlex.quote(str(path))}"
        )
    return f"{path}{colon}{variant}"


def check_parts(config: Any, source: Path, allowed: Sequence[str] = ()) -> None:
    """Checks that no value of a configuration names a module that must not be imported.

    Args:
      config: nested values, as a workdir records them.
      source: the file that records them, inside the workdir.
      allowed: files and modules that may be imported.

    Raises:
      ForeignCode: a ``package.module:Name`` outside of the repository and of ``LIBRARIES``.
    """
    for field, value in _texts(config):
        module, _, name = value.partition(":")
        # ``find_part`` imports nothing for another text, as a URL or "random: the baseline".
        if not name.isidentifier() or module.split(".")[0] in LIBRARIES:
            continue
        if any(module == one.partition(":")[0] for one in allowed):
            continue
        for file in _find_module(module):
            if file is not None and _is_own(file, source):
                continue
            if file is not None and any(_names_file(one, file) for one in allowed):
                continue
            raise ForeignCode(
                f"{source}: {field} is {value!r}, which would import {file or module}, and that is "
                f"not part of this repository; if you trust it, add --allow_code={module}"
            )


def _is_own(file: Path, source: Path) -> bool:
    """Returns True for a file of the repository that is no part of a run or an environment."""
    if not file.is_relative_to(ROOT):
        return False
    parts = file.relative_to(ROOT).parts
    workdir = source.parent.resolve()  # The file itself may be a link to anywhere.
    if workdir == ROOT:  # Its files are those of the repository.
        return False
    inside = workdir.relative_to(ROOT).parts[:1] if workdir.is_relative_to(ROOT) else ()
    if parts[0] in (RUNS, *inside) or "site-packages" in parts:
        return False
    return not any(part.startswith(".") for part in parts)


def _names_file(allowed: str, file: Path) -> bool:
    name = allowed if Path(allowed).expanduser().is_file() else allowed.partition(":")[0]
    return Path(name).expanduser().resolve() == file


def _texts(values: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the path and value of each text in nested values."""
    if isinstance(values, str):
        yield prefix, values
    elif isinstance(values, Mapping):
        for name, value in values.items():
            yield from _texts(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(values, Sequence):
        for value in values:
            yield from _texts(value, prefix)


def _find_module(module: str) -> list[Path | None]:
    """Returns the files that importing a module would run: its packages' and its own.

    None stands for a module without a file, such as a built-in one. Empty: there is no such module;
    the text is no part, or the part's constructor will say so. Unlike ``importlib.util.find_spec``
    this imports no package on the way.
    """
    files: list[Path | None] = []
    folders: list[str] | None = None
    parts = module.split(".")
    for number in range(len(parts)):
        name = ".".join(parts[: number + 1])
        try:
            if number == 0:
                spec = importlib.util.find_spec(name)
            else:
                spec = importlib.machinery.PathFinder.find_spec(name, folders)
        except (ValueError, ImportError):
            break
        if spec is None:
            break
        folders = list(spec.submodule_search_locations or ())
        if spec.has_location and spec.origin:
            files.append(Path(spec.origin).resolve())
        elif not folders:  # A folder without __init__.py runs nothing.
            files.append(None)
        if not folders:
            break
    return files


CALLS = "calls.jsonl"
"""File of a workdir with the date, commit and command of each call that trained in it."""


def record_call(workdir: Path) -> None:
    """Appends date, commit and command of this call to a workdir; raises no OSError."""
    call = {
        "time": time.strftime("%Y-%m-%d %H:%M %Z"),
        "commit": describe_commit(),
        "command": shlex.join(["python", "-m", program_name(), *sys.argv[1:]]),
    }
    record = RecordFile(workdir / CALLS)
    record.append((json.dumps(call, ensure_ascii=False) + "\n").encode())
    record.close()


def read_calls(workdir: Path) -> list[dict[str, Any]]:
    """Returns what ``record_call`` wrote, oldest first; damaged lines are left out."""
    path, calls = workdir / CALLS, []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):
            call = json.loads(line)
            if isinstance(call, dict) and {"time", "commit", "command"} <= call.keys():
                calls.append(call)
    return calls


def describe_commit(unimportant: Sequence[str] = ()) -> str:
    """Returns the commit of the repository, ``with changes`` if files differ; "" without Git.

    Args:
      unimportant: files and folders below the root whose changes do not count.
    """
    status = ["status", "--porcelain", "-uno", "--", ".", *(f":!{path}" for path in unimportant)]
    try:
        done = [
            subprocess.run(
                ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10
            )
            for words in (["rev-parse", "--short=12", "HEAD"], status)
        ]
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if any(one.returncode for one in done):
        return ""
    return done[0].stdout.strip() + (" with changes" if done[1].stdout.strip() else "")


def log_to(path: Path) -> None:
    """Appends the log messages of this process to a file as well."""
    handler = _LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)


def describe_devices() -> str:
    """Returns the devices in words, as ``2 × cpu``."""
    devices: list[Any] = jax.devices()
    return f"{len(devices)} × {devices[0].device_kind}"
