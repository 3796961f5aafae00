"""Training of any model on any task: configuration, state, step, devices, checkpoints and loop."""

from flaxnets.training.checkpoint import (
    Checkpointer,
    CheckpointNotWritten,
    DamagedCheckpoint,
    DataChanged,
    Position,
    initialize_from,
    restore_variables,
)
from flaxnets.training.config import (
    Config,
    Data,
    OptimizerConfig,
    Scorer,
    UndefinedMethod,
    differences,
    to_dict,
    update,
)
from flaxnets.training.cost import Cost, Memory, estimate_cost
from flaxnets.training.evaluation import evaluate
from flaxnets.training.flops import Flops, count_flops
from flaxnets.training.loop import OnEvaluation, Outcome, train
from flaxnets.training.metric_writer import MetricsWriter, NonFiniteLoss, read_metrics
from flaxnets.training.optimizer import make_optimizer, make_schedule
from flaxnets.training.parallel import (
    DataParallel,
    Pmap,
    Strategy,
    make_strategy,
)
from flaxnets.training.preemption import Preemption
from flaxnets.training.profile import Profile
from flaxnets.training.state import TrainState, initialize_variables, make_state
from flaxnets.training.step import make_evaluation_step, make_train_step
from flaxnets.training.workdir import Workdir, WorkdirError

__all__ = [
    "CheckpointNotWritten",
    "Checkpointer",
    "Config",
    "Cost",
    "DamagedCheckpoint",
    "Data",
    "DataChanged",
    "DataParallel",
    "Flops",
    "Memory",
    "MetricsWriter",
    "NonFiniteLoss",
    "OnEvaluation",
    "OptimizerConfig",
    "Outcome",
    "Pmap",
    "Position",
    "Preemption",
    "Profile",
    "Scorer",
    "Strategy",
    "TrainState",
    "UndefinedMethod",
    "Workdir",
    "WorkdirError",
    "count_flops",
    "differences",
    "estimate_cost",
    "evaluate",
    "initialize_from",
    "initialize_variables",
    "make_evaluation_step",
    "make_optimizer",
    "make_schedule",
    "make_state",
    "make_strategy",
    "make_train_step",
    "read_metrics",
    "restore_variables",
    "to_dict",
    "train",
    "update",
]
