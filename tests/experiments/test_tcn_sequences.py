"""Study of sequences, and DeepConvLSTM: sizes, variants, sources."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import char_rnn, deep_conv_lstm
from experiments.results.sequence_table import count_parameters
from experiments.tcn_sequences import FAMILIES, SIZES, DigitsStudy, MusicStudy, get_config
from flaxnets.recurrent.config import make_recurrent
from flaxnets.training.config import Config
from flaxnets.training.loop import train
from flaxnets.training.metric_writer import progress_line, read_metrics
from flaxnets.training.parallel import DataParallel
from flaxnets.training.workdir import Workdir
from tests.experiments import grid

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
UNLIKE = [task for task in SIZES if task not in ("permuted_mnist", "piano", "muse")]
"""Tasks whose networks differ."""


@pytest.mark.parametrize(
    "task",
    [pytest.param(t, marks=[pytest.mark.stress] * (t not in ("copy", "jsb"))) for t in UNLIKE],
)
def test_all_families_have_the_studys_number_of_parameters(task: str) -> None:
    budget = SIZES[task].budget
    counts = {family: count_parameters(task, get_config(f"{task},{family}")) for family in FAMILIES}
    assert {f: n for f, n in counts.items() if abs(n - budget) > 0.05 * budget} == {}


def test_the_receptive_field_of_the_tcn_covers_the_generated_tasks() -> None:
    for task, steps in (("adding", 600), ("copy", 1_020), ("sequential_mnist", 784)):
        features, kernel_size = SIZES[task].tcn
        assert 1 + 2 * (kernel_size - 1) * (2 ** len(features) - 1) >= steps


def test_variants_name_a_task_and_a_family() -> None:
    default, named = get_config(), get_config("adding,tcn")
    assert default == named
    both = get_config("copy,conv_gru").model
    assert (both.encoder.name, both.recurrent.cell) == ("tcn", "gru")
    flags = ("--config.model.recurrent.features=32", "--config.data.length=50")
    config = grid.parse("tcn_sequences.py:adding,lstm", *flags)
    assert config.model.recurrent.features == 32
    assert config.source("test")[0]["inputs"].shape == (50, 2)


def test_no_variant_sets_what_its_one_recurrent_layer_does_not_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    configs = [get_config(f"{task},{family}").model for task in SIZES for family in FAMILIES]
    for task in deep_conv_lstm.TASKS:
        for family in deep_conv_lstm.FAMILIES:
            configs.append(deep_conv_lstm.get_config(f"{task},{family}").model)
    configs += [char_rnn.get_config(variant).model for variant in (None, *char_rnn.VARIANTS)]
    for config in configs:
        make_recurrent(config.recurrent)
    assert not caplog.messages


@pytest.mark.parametrize("family", ["mingru", "lru"])
def test_linear_recurrences_read_the_sizes_of_the_numbers_that_are_added(family: str) -> None:
    # A LayerNorm of the two inputs would leave only which is the greater.
    config = grid.parse(f"tcn_sequences.py:adding,{family}", "--config.data.length=12")
    model = config.make_model()
    numbers = np.random.default_rng(0).uniform(0.3, 0.6, (2, 1, 12, 1))
    marks = (np.arange(12) % 5 == 0).astype(float)[None, None, :, None]
    pairs = np.concatenate([numbers, np.broadcast_to(marks, numbers.shape)], -1).astype(np.float32)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), pairs[0])
    one, other = (jax.jit(partial(model.apply, train=False))(variables, pair) for pair in pairs)
    assert np.abs(one - other).max() > 1e-2


def test_the_average_over_time_classifies_sequences_but_predicts_no_steps() -> None:
    config = grid.parse("tcn_sequences.py:smoke", "--config.model.recurrent.cell=average")
    model = config.make_model()
    inputs = config.source("test")[0]["inputs"][None]
    variables = model.init(jax.random.key(0), inputs, train=False)
    assert model.apply(variables, inputs, train=False).shape == (1, 1, 1)
    with pytest.raises(ValueError, match="return_carry, initial_carry: expected False and None"):
        model.apply(variables, inputs, train=False, return_carry=True)
    config = get_config("copy,gru")
    config.model.recurrent.cell = "average"
    with pytest.raises(ValueError, match=r"model.recurrent.cell: .* would read the steps that are"):
        config.make_model()


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("ading", "no such variant; did you mean 'adding'"),
        ("jsb,lstn", "no such family; did you mean 'lstm'"),
    ],
)
def test_unknown_variants_are_refused(variant: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_config(variant)


@pytest.mark.parametrize("task", ["jsb", "sequential_mnist", "characters"])
def test_data_that_are_not_given_are_asked_for(task: str) -> None:
    with pytest.raises(ValueError, match=r"data\.root: expected"):
        get_config(f"{task},lstm").validate()


def test_permuted_digits_are_the_digits_in_one_order(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, count in (("train", 12), ("test", 3)):
        images = generator.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count).astype(np.uint8) % 10
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
    plain, permuted = get_config("sequential_mnist"), get_config("permuted_mnist")
    for config in (plain, permuted):
        assert isinstance(config, DigitsStudy)
        config.data.root, config.data.validation = str(tmp_path), 4
    lengths = [len(plain.source(split)) for split in ("train", "validation", "test")]
    assert lengths == [8, 4, 3]
    order: dict[int, int] = {}
    for split in ("train", "test"):
        for i in range(3):
            digit, mixed = plain.source(split)[i], permuted.source(split)[i]
            assert digit["label"] == mixed["label"]
            assert not np.array_equal(digit["inputs"], mixed["inputs"])
            np.testing.assert_array_equal(np.sort(digit["inputs"], 0), np.sort(mixed["inputs"], 0))
            # All digits share the order: values that occur once tell where a pixel went.
            x, y = digit["inputs"][:, 0], mixed["inputs"][:, 0]
            single = [v for v in np.unique(x) if (x == v).sum() == 1]
            places = {
                int(np.flatnonzero(x == v)[0]): int(np.flatnonzero(y == v)[0]) for v in single
            }
            assert all(order.setdefault(a, b) == b for a, b in places.items())


def music(tmp_path: Path) -> MusicStudy:
    """Returns the study of a set of piano rolls; one sequence of each split has one step."""
    generator = np.random.default_rng(1)
    arrays = {}
    for split, lengths in (("train", (9, 40, 1, 70)), ("valid", (5, 33)), ("test", (1, 8, 2))):
        arrays[split] = (generator.random((sum(lengths), 88)) < 0.05).astype(np.uint8)
        arrays[f"{split}_lengths"] = np.array(lengths, np.int32)
    np.savez(tmp_path / "jsb_chorales.npz", **arrays)
    config = get_config("jsb,gru")
    assert isinstance(config, MusicStudy)
    config.data.root, config.batch_steps = str(tmp_path), 128
    return config


def test_each_step_of_music_but_the_first_is_predicted_once(tmp_path: Path) -> None:
    config = music(tmp_path)
    config.validate()
    assert (config.problem.num_outputs, config.problem.distribution) == (88, "bernoulli")
    for split, steps in (("validation", 4 + 32), ("test", 7 + 1)):
        batches = list(config.make_data(split).batches())
        counted = sum(int((b["target_mask"] & b["mask"][:, None]).sum()) for b in batches)
        assert counted == steps
        # The target of a step is the input of the next.
        for batch in batches:
            following = batch["target_mask"][:, 1:]
            np.testing.assert_array_equal(
                batch["targets"][:, :-1][following], batch["inputs"][:, 1:][following]
            )
    config.data.name = "jsb_choral"
    with pytest.raises(ValueError, match="did you mean 'jsb_chorales'"):
        music_again(config)


def music_again(config: MusicStudy) -> None:
    """Reads the training split, which the first use of a source would keep."""
    type(config)(data=config.data).read_problem()


def test_every_variant_is_an_experiment() -> None:
    for task in SIZES:
        config = get_config(f"{task},mingru")
        assert isinstance(config, Config)
        assert config.checkpoint_every == config.eval_every
        assert config.model.recurrent.cell == "mingru"


@pytest.mark.parametrize(("iterations", "fallbacks"), [(1, 1.0), (100, 0.0)])
def test_training_records_what_a_parallel_scan_takes(
    tmp_path: Path, iterations: int, fallbacks: float
) -> None:
    config = get_config("smoke")
    config.num_steps, config.log_every = 2, 1
    config.model.recurrent.parallel = "deer"
    config.model.recurrent.parallel_iterations = iterations
    with Workdir(tmp_path) as workdir:
        train(config, workdir, strategy=DataParallel(jax.devices()[:1]), show_progress=False)
    steps = [record for record in read_metrics(tmp_path) if record["split"] == "train"]
    assert [record["scan_fallbacks"] for record in steps] == [fallbacks] * 2
    assert all(1 <= record["scan_iterations"] <= 17 for record in steps)
    line = progress_line(2, 4, steps[-1])
    assert ("1 fallbacks a sequence and layer" in line) == (fallbacks == 1.0)
