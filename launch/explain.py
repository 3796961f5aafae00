"""Help of an experiment, its fields as text, and what is wrong with a command line.

``launch.program`` imports this file by name where a help or an error is printed.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from flaxnets.configuration import nearest
from flaxnets.training.config import Config, flatten
from launch import program

OWN = "run"
"""Heading of the fields that belong to no part."""
MOST_WIDTH = 100
"""Characters of a line on a wide terminal."""


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of a configuration, which is a flag ``--config.NAME``.

    Attributes:
      name: path of the field, as ``optimizer.learning_rate``.
      part: path of the dataclass that holds it, as ``optimizer``; empty for the configuration.
      kind: its type as text, as ``tuple[str, ...]``.
      value: its value in the experiment.
      doc: its docstring; empty without one.
      choices: names it may have, where the docstring names a table of them.
      runtime: True if it may differ when a run is resumed.
    """

    name: str
    part: str
    kind: str
    value: Any
    doc: str
    choices: tuple[str, ...]
    runtime: bool


def fields_of(config: Any, part: str = "") -> Iterator[Field]:
    """Yields the fields of a configuration, those of nested dataclasses after its own."""
    hints = typing.get_type_hints(type(config))
    nested = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{part}.{field.name}" if part else field.name
        if dataclasses.is_dataclass(value):
            nested.append((name, value))
            continue
        doc, owner = _document(type(config), field.name)
        yield Field(
            name=name,
            part=part,
            kind=_describe_type(hints[field.name]),
            value=value,
            doc=doc,
            choices=_find_choices(doc, owner),
            runtime=bool(field.metadata.get("runtime")),
        )
    for name, value in nested:
        yield from fields_of(value, name)


def describe_fields(spec: str, config: Config) -> str:
    """Returns the help of an experiment: each field with type, default and docstring, by part.

    Args:
      spec: ``FILE[:variant]``, as it was given.
      config: the experiment's configuration.
    """
    width = min(shutil.get_terminal_size((MOST_WIDTH, 24)).columns, MOST_WIDTH)
    module = inspect.getdoc(sys.modules[type(config).__module__]) or type(config).__name__
    lines = textwrap.wrap(f"{spec}: {module.splitlines()[0]}", width)
    lines += textwrap.wrap(
        "Each field below is a flag, --config.FIELD=VALUE, shown with its value in this experiment "
        "and its type. Fields marked * may differ when a run is resumed.",
        width,
    )
    parts = dict(_parts_of(config))
    current = None
    for field in fields_of(config):
        if field.part != current:
            current = field.part
            title = f"{current}: {parts[current]}" if current else f"{OWN}: {parts['']}"
            lines += ["", *textwrap.wrap(title.replace("``", ""), width)]
        mark = "*" if field.runtime else ""
        lines.append(f"  --config.{field.name}={_as_flag(field.value)}  ({field.kind}){mark}")
        text = " ".join(field.doc.replace("``", "").split())
        if field.choices:
            text = f"{text} One of: {', '.join(field.choices)}.".lstrip()
        lines += textwrap.wrap(
            text, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
        )
    return "\n".join(lines)


def describe_values(config: Config, default: Config) -> str:
    """Returns the values of a configuration as flags, with the experiment's where they differ.

    Args:
      config: the configuration as it will run.
      default: that of the experiment's file.
    """
    defaults = dict(flatten(default))
    lines, current = [], ""
    for name, value in flatten(config):
        part = name.rpartition(".")[0]
        if part != current:
            current = part
            lines.append("")
        line = f"--config.{name}={_as_flag(value)}"
        if name not in defaults or defaults[name] != value:
            line += f"  # in the experiment: {_as_flag(defaults.get(name, ''))}"
        lines.append(line)
    return "\n".join(lines)


SYNONYMS = {
    "learning_rate": ("lr", "base_lr", "max_lr"),
    "num_steps": ("steps", "max_steps", "train_steps", "iterations", "iters", "max_iter"),
    "batch_size": ("bs", "batch", "train_batch_size", "per_device_batch_size"),
    "eval_every": ("eval_steps", "eval_interval", "val_every"),
    "checkpoint_every": ("save_steps", "save_every", "save_interval", "ckpt_every"),
    "log_every": ("log_steps", "logging_steps", "log_interval", "print_freq"),
    "weight_decay": ("wd",),
    "clip_norm": ("clip", "grad_clip", "max_grad_norm", "gradient_clip_val"),
    "warmup_steps": ("warmup",),
    "schedule": ("scheduler", "lr_scheduler", "lr_scheduler_type"),
    "accumulate_steps": ("gradient_accumulation_steps", "accum", "accumulate_grad_batches"),
    "optimizer.name": ("optim", "opt", "optimizer"),
    "encoder.name": ("encoder", "backbone", "arch", "model"),
    "encoder.weights": ("weights", "pretrained"),
    "recurrent.cell": ("cell", "rnn"),
    "recurrent.features": ("hidden_size", "hidden", "units", "rnn_size"),
    "recurrent.num_layers": ("layers",),
    "decoder.name": ("decoder",),
    "model.dtype": ("precision", "fp16", "bf16", "amp", "mixed_precision"),
    "data.root": ("data_dir", "data_root", "data_path", "dataset_dir", "data", "dataset", "root"),
    "data.num_workers": ("workers", "num_workers", "j"),
    "initialize_from": ("init_from", "finetune_from", "load_from"),
    "patience": ("early_stopping", "early_stop"),
    "ema_decay": ("ema",),
}
"""Ends of the paths of fields, and what other programs call them."""
FLAG_SYNONYMS = {
    "workdir": ("output_dir", "out_dir", "save_dir", "log_dir", "logdir", "model_dir", "exp_dir"),
    "config": ("experiment", "cfg", "config_file", "conf"),
    "tracker": ("wandb", "use_wandb", "report_to", "mlflow", "trackio", "trackers", "logger"),
}
"""Flags of the programs, and what other programs call them."""
SENTENCES = {
    "the length of a training is given in steps, --config.num_steps=N; an epoch has as many as the "
    "examples divided by --config.batch_size": (
        *("epochs", "num_epochs", "max_epochs", "num_train_epochs", "epoch"),
    ),
    "all devices of the machine are used; CUDA_VISIBLE_DEVICES=0,1 in front of the command chooses "
    "some of its GPUs, and launch.local and launch.slurm start several processes": (
        *("gpus", "gpu", "devices", "num_gpus", "n_gpus", "gpu_ids", "device", "ngpus", "tpus"),
    ),
    "the same command resumes a run": ("resume", "resume_from", "resume_from_checkpoint"),
}
"""Sentences about flags of other programs that have no counterpart."""


def explain_flag(name: str, config: Config, known: Collection[str]) -> str:
    """Returns the error message for a flag that there is not, with the field or flag meant.

    >>> explain_flag("lr", Config(), ["config"])
    '--lr: no such flag; did you mean --config.optimizer.learning_rate?'
    >>> explain_flag("resume", Config(), [])
    '--resume: no such flag; the same command resumes a run'

    Args:
      name: of the flag, without dashes.
      config: the experiment's configuration.
      known: the flags of the program.

    Returns:
      One sentence; empty where nothing is known of the name.
    """
    plain = name.replace("-", "_").lower()
    for flag, names in FLAG_SYNONYMS.items():
        if plain in names and flag in known:
            return f"--{name}: no such flag; did you mean --{flag}?"
    for sentence, names in SENTENCES.items():
        if plain in names:
            return f"--{name}: no such flag; {sentence}"
    meant = find_field(name, [field for field, _ in flatten(config)])
    return f"--{name}: no such flag; did you mean --config.{meant}?" if meant else ""


def find_field(name: str, fields: Collection[str]) -> str:
    """Returns the field that other programs, or another part, call by a name.

    >>> find_field("optimizer.lr", ["optimizer.b2", "optimizer.learning_rate"])
    'optimizer.learning_rate'
    >>> find_field("learning-rate", ["optimizer.b2", "optimizer.learning_rate"])
    'optimizer.learning_rate'

    Args:
      name: of a flag or a field, possibly with a path.
      fields: paths of all fields.

    Returns:
      A path; empty where nothing is known of the name.
    """
    part, _, last = name.replace("-", "_").lower().rpartition(".")
    ends = [end for end, names in SYNONYMS.items() if last in names] or [last]
    for end in ends:
        found = [field for field in fields if field == end or field.endswith(f".{end}")]
        own = [field for field in found if field.startswith(f"{part}.")]
        if found:  # The shortest path: the run's own batch_size rather than that of a part.
            return min(own or found, key=len)
    return ""


def _as_flag(value: Any) -> str:
    """Returns a value as it is written in a flag: tuples with commas, texts without quotes."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value)


def _parts_of(config: Any, part: str = "") -> Iterator[tuple[str, str]]:
    """Yields the path of each dataclass and the first line of its docstring."""
    doc = inspect.getdoc(type(config)) or ""
    yield part, doc.splitlines()[0] if doc else type(config).__name__
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _parts_of(value, f"{part}.{field.name}" if part else field.name)


def _document(kind: type, name: str) -> tuple[str, type]:
    """Returns a field's docstring and the class that has it: the nearest base with one."""
    for base in kind.__mro__:
        if name in (found := _field_docstrings(base)):
            return found[name], base
    return "", kind


@functools.cache
def _field_docstrings(kind: type) -> Mapping[str, str]:
    """Returns the texts that follow the fields of a class in its source, by field."""
    if not dataclasses.is_dataclass(kind):
        return {}
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # A class that was made at run time.
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found = {}
    for statement, after in itertools.pairwise(body):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            text = after.value if isinstance(after, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                found[statement.target.id] = inspect.cleandoc(text.value)
    return found


def _find_choices(doc: str, owner: type) -> tuple[str, ...]:
    """Returns the names in the table that a docstring names, as ``CELLS``; empty without one."""
    module = sys.modules.get(owner.__module__)
    for name in re.findall(r"``([A-Z][A-Z_]+)``", doc):
        table = getattr(module, name, None)
        if isinstance(table, Mapping | tuple | list) and all(isinstance(one, str) for one in table):
            return tuple(table)
    return ()


def _describe_type(hint: Any) -> str:
    """Returns a type as it is written in the source."""
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


# ---- Errors of the command line ---------------------------------------------------------------


def print_fields(argv: Sequence[str]) -> int:
    """Prints the fields of the experiment of ``--config``; returns the exit code."""
    spec = program.values_of_config(argv)[-1]
    try:
        config = program.load_experiment(spec)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(describe_fields(program.recorded_name(spec), config))
    print(f"\npython -m {program.program_name()} --help lists the program's own flags.")
    return 0


def explain_unknown_flag(argv: Sequence[str], name: str) -> str:
    """Returns the error message for a flag that there is not; empty where its name says nothing."""
    if broken := _explain_experiment(argv):
        return broken
    specs = program.values_of_config(argv)
    config = program.load_experiment(specs[-1]) if specs else Config()
    return explain_flag(name, config, set(flags.FLAGS))


def explain_flag_error(argv: Sequence[str], error: flags.Error) -> str:
    """Returns the error message for a required flag that was not given; empty for other errors."""
    if broken := _explain_experiment(argv):
        return broken
    found = re.match(r"flag --(\w+)=None: Flag --\1 must have a value", str(error))
    if not found:
        return ""
    name = found[1]
    if name == "config":
        return (
            "--config: expected an experiment, as --config=experiments/moving_shapes.py, received "
            "none; python -m launch lists them"
        )
    return f"--{name}: expected a value, received none: {flags.FLAGS[name].help}"


def explain_field(argv: Sequence[str]) -> str:
    """Returns the error message for a ``--config.FIELD`` that the configuration does not have."""
    if broken := _explain_experiment(argv):
        return broken
    specs = program.values_of_config(argv)
    if not specs:
        return "--config.FIELD: expected --config=FILE before it, received none"
    values = dict(flatten(program.load_experiment(specs[-1])))
    names = list(values)  # Tables count as one.
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0].removeprefix("no")
        if not name.startswith("config."):
            continue
        field = name.removeprefix("config.")
        tables = [known for known in names if field.startswith(known + ".")]
        if tables:
            value = values[tables[0]]
            if isinstance(value, Mapping) and field.removeprefix(tables[0] + ".") not in value:
                return (
                    f"--{name}: {tables[0]} is a table whose keys stand in the experiment's file; "
                    f"expected one of {', '.join(value) or 'none'}"
                )
            continue
        if field in names:
            continue
        # The last part of a nested field alone is less similar than the default cutoff.
        meant = find_field(field, names)
        hint = f"; did you mean {meant!r}?" if meant else nearest(field, names, cutoff=0.4)
        return f"--{name}: no such field of the configuration{hint}"
    return ""


def _explain_experiment(argv: Sequence[str]) -> str:
    """Returns the experiment's own error message; the flag would wrap it in a traceback."""
    for spec in program.values_of_config(argv):
        try:
            program.load_experiment(spec)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
    return ""
