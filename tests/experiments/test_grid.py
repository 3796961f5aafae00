"""Grid by flags: encoders × cells × heads on clips, decoders × cells × encoders on captions."""

import importlib
import itertools
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxnets.decoders.config import DECODERS
from flaxnets.encoders.config import ENCODERS, EncoderConfig, make_encoder
from flaxnets.heads.config import HEADS as HEAD_TABLE
from flaxnets.recurrent.config import CELLS as CELL_TABLE
from tests.experiments import grid

# ml_collections loads the file of an experiment by a deprecated function.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.fixture(autouse=True)
def own_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes a module outside the repository importable."""
    (tmp_path / "own_cell.py").write_text(grid.OWN_CELL)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield
    sys.modules.pop("own_cell", None)


def check_clips(encoder: str, cell: str, head: str) -> None:
    config = grid.parse(
        "moving_shapes.py:smoke",
        *grid.encoder_flags(encoder),
        *grid.QUICK,
        "--config.batch_size=2",
        "--config.model.spatial_pool=mean",
        f"--config.model.recurrent.cell={cell}",
        "--config.model.recurrent.features=4",
        "--config.model.recurrent.delta_features=False",
        f"--config.model.head.pool={head}",
        "--config.model.head.attention_features=3",
    )
    losses, moved = grid.train_two_steps(config, grid.clips())
    assert all(math.isfinite(loss) for loss in losses)
    assert np.isfinite(jax.tree.leaves(moved)).all()
    for part in ("recurrent", "classifier"):
        assert max(jax.tree.leaves(moved[part])) > 0, part
    if encoder not in ("downsampled_frames", "raw_columns"):  # They have no parameters.
        assert max(jax.tree.leaves(moved["encoder"])) > 0


CELLS_ON_MAPS = ("stlstm", "minconvgru", "minconvlstm")
"""With feature maps as convlstm, so that one encoder and one head suffice."""
# Each cell with every second head; the encoders in turn, so that each trains below cells on feature
# maps or below cells on vectors. All combinations are among the stress tests.
ENCODERS_IN_TURN = itertools.cycle(grid.ENCODER_FLAGS)
ROWS = [
    (next(ENCODERS_IN_TURN), cell, head)
    for (i, cell), (j, head) in itertools.product(enumerate(grid.CELLS), enumerate(grid.HEADS))
    if (i + j) % 2 == 0
]


# One test for each encoder, so that a failure names it.
@pytest.mark.slow
@pytest.mark.parametrize("encoder", grid.ENCODER_FLAGS)
def test_each_encoder_and_cell_and_head_trains_from_flags(encoder: str) -> None:
    rows = [row for row in ROWS if row[0] == encoder]
    assert len(rows) >= 2
    for row in rows:
        check_clips(*row)


@pytest.mark.stress
@pytest.mark.parametrize("encoder", grid.ENCODER_FLAGS)
@pytest.mark.parametrize("cell", grid.CELLS)
def test_every_combination_trains_from_flags(encoder: str, cell: str) -> None:
    for head in grid.HEADS:
        check_clips(encoder, cell, head)


def test_the_grid_leaves_no_name_of_the_tables_out() -> None:
    families = {
        type(make_encoder(EncoderConfig(name, input_size=4 * (name[0] == "d"))))
        for name in ENCODERS
    }
    small = {
        type(make_encoder(EncoderConfig(name, input_size=4 * (name[0] == "d"))))
        for name in grid.ENCODER_FLAGS
    }
    assert families == small
    # minLSTM and QRNN differ from minGRU in their gates alone; CELLS_ON_MAPS are trained below.
    assert set(CELL_TABLE) - set(grid.CELLS) == {"minlstm", "qrnn", *CELLS_ON_MAPS}
    assert set(HEAD_TABLE) == set(grid.HEADS)


@pytest.mark.stress
@pytest.mark.parametrize("cell", CELLS_ON_MAPS)
def test_further_cells_on_maps_train_from_flags(cell: str) -> None:
    check_clips("small_cnn", cell, "last")


@pytest.mark.slow_after(12)
@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_built_from_flags(name: str) -> None:
    size = ("--config.model.encoder.input_size=8",) * (name == "downsampled_frames")
    if name.startswith(("crnn_vgg", "sound_cnn")):  # The experiment's own are for small_cnn.
        size = ("--config.model.encoder.features=()", "--config.model.encoder.strides=()")
    config = grid.parse(
        "moving_shapes.py:smoke",
        f"--config.model.encoder.name={name}",
        *size,
    )
    encoder = config.make_model().encoder
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.uint8)
    shapes = jax.eval_shape(
        lambda images: encoder.init_with_output(jax.random.key(0), images, train=False)[0], images
    )
    assert len(shapes.shape) == 4


def check_captions(decoder: str, pairs: Iterable[tuple[str, str]]) -> None:
    batch = None
    for cell, encoder in pairs:
        config = grid.parse(
            "show_attend_tell.py:smoke",
            *grid.encoder_flags(encoder),
            *grid.QUICK,
            "--config.batch_size=2",
            f"--config.model.decoder.name={decoder}",
            f"--config.model.decoder.cell={cell}",
            "--config.model.recurrent.features=4",
        )
        if batch is None:
            batch = grid.first_batch(config)
            batch["video"] = batch["video"][:, ::4, ::4, ::4]
            batch["lengths"] = np.full(2, batch["video"].shape[1], np.int32)
        losses, moved = grid.train_two_steps(config, batch)
        assert all(math.isfinite(loss) for loss in losses), (cell, encoder)
        assert max(jax.tree.leaves(moved["decoder"])) > 0
        assert max(jax.tree.leaves(moved["encoder"]["encoder"])) > 0


CAPTION_CELLS, CAPTION_ENCODERS = ("lstm", "gru"), ("small_cnn", "resnet18", "mobilenet_v2")


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_captioning_decoder_trains_and_every_pair_of_cell_and_encoder(decoder: str) -> None:
    pairs = list(itertools.product(CAPTION_CELLS, CAPTION_ENCODERS))
    assert len(pairs) <= len(DECODERS)
    check_captions(decoder, [pairs[list(DECODERS).index(decoder) % len(pairs)]])


@pytest.mark.stress
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_captioning_decoder_trains_with_each_pair(decoder: str) -> None:
    check_captions(decoder, itertools.product(CAPTION_CELLS, CAPTION_ENCODERS))


REFUSED = {
    "a cell on feature maps behind vectors": (
        ("encoder.name=resnet18", "encoder.level=pooled", "recurrent.cell=convgru"),
        r"convgru reads feature maps, and model\.encoder\.level=pooled of resnet18 gives vectors; "
        r"choose a level of stem, stage_1, stage_2, stage_3, stage_4, or a cell on vectors",
    ),
    "a level that does not exist": (
        ("encoder.name=resnet18", "encoder.level=stage_5"),
        r"model\.encoder\.level: expected some of stem, stage_1, .*; received 'stage_5'; did you "
        r"mean 'stage_4'",
    ),
    "a rate above 1": (
        ("recurrent.dropout_rate=1.5",),
        r"model\.recurrent\.dropout_rate: expected 0 to below 1, received 1\.5",
    ),
    "no layers": (
        ("recurrent.num_layers=0",),
        r"model\.recurrent\.num_layers: expected at least 1, received 0",
    ),
    "a layer without channels": (
        ("encoder.features=(0,8)",),
        r"model\.encoder\.features: expected values of at least 1, received \(0, 8\)",
    ),
    "an unknown dtype": (
        ("dtype=bfloat17",),
        r"model\.dtype: unknown 'bfloat17'; did you mean 'bfloat16'",
    ),
    "rematerialisation of what has no parameters": (
        ("encoder.name=downsampled_frames", "encoder.input_size=8", "encoder.remat=full"),
        r"model\.encoder\.remat: downsampled_frames has no such option",
    ),
    "no encoder": (
        ("encoder.name=flax.linen:LayerNorm",),
        r"model\.encoder\.name: expected a flax\.linen\.Module that encodes images, called as "
        r"encoder\(images, mask, train=False\), received 'flax\.linen:LayerNorm'",
    ),
    "an encoder that needs arguments": (
        ("encoder.name=flax.linen:Conv",),
        r"model\.encoder\.name: expected .* calling 'flax\.linen:Conv' raised TypeError",
    ),
    "a function that pools nothing": (
        ("head.pool=flax.linen:relu",),
        r"model\.head\.pool: expected a function of \(B,T,F\) inputs and lengths",
    ),
    "a cell that says nothing of its axes": (
        ("recurrent.cell=own_cell:CellWithoutAxes",),
        r"expected a cell whose num_feature_axes is 1 \(vectors\) or 3 \(feature maps\)",
    ),
    "an unknown encoder": (
        ("encoder.name=resnet19",),
        r"model\.encoder\.name: unknown 'resnet19'; did you mean 'resnet1",
    ),
    "weights that no package ships": (
        ("encoder.name=vgg16", "encoder.weights=imagenet"),
        r"only efficientnet_lite0's come with a package; for vgg16 expected a \.pth or",
    ),
    "an unknown cell": (
        ("recurrent.cell=lsmt",),
        r"model\.recurrent\.cell: unknown 'lsmt'; did you mean 'lstm'",
    ),
    "a module that does not exist": (
        ("recurrent.cell=no_such.module:Cell",),
        r"model\.recurrent\.cell: cannot import 'no_such\.module' .*expected package\.module:Name",
    ),
    "a name that the module lacks": (
        ("recurrent.cell=own_cell:LeakyCel",),
        r"own_cell has no 'LeakyCel'; did you mean 'LeakyCell'",
    ),
    "no cell": (
        ("recurrent.cell=flax.linen:Dense",),
        r"model\.recurrent\.cell: expected a recurrent cell: a subclass of "
        r"flax\.linen\.RNNCellBase, .*received Dense",
    ),
    "an unknown head": (
        ("head.pool=atention",),
        r"model\.head\.pool: unknown 'atention'; did you mean 'attention'",
    ),
    "an unknown spatial pooling": (
        ("spatial_pool=sum",),
        r"model\.spatial_pool: unknown 'sum'; there are flatten, mean",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_incompatible_parts_are_refused(case: str) -> None:
    given, message = REFUSED[case]
    config = grid.parse("moving_shapes.py:smoke", *(f"--config.model.{each}" for each in given))
    build = config.initial_variables if "weights" in case else lambda _: config.make_model()
    with pytest.raises(ValueError, match=message):
        build({"params": {"encoder": {}}})


def test_a_head_for_one_length_is_refused_where_lengths_vary(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = grid.parse("lrcn_ucf101.py", "--config.model.head.pool=concatenate")
    monkeypatch.setattr(type(config), "class_names", ("a", "b"))
    with pytest.raises(
        ValueError, match=r"'concatenate' needs clips of one length and these vary; expected one"
    ):
        config.make_model()


def test_dropout_of_hidden_states_needs_a_cell_that_reads_them() -> None:
    config = grid.parse(
        "moving_shapes.py:smoke",
        "--config.model.recurrent.cell=mingru",
        "--config.model.recurrent.recurrent_dropout_rate=0.5",
        "--config.batch_size=2",
    )
    with pytest.raises(ValueError, match="recurrent_dropout_rate: expected 0 for MinGRUCell"):
        grid.train_two_steps(config, grid.first_batch(config))
