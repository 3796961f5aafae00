"""Captioning benchmarks: every way runs, and equal weights give equal results."""

import time
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from experiments.benchmarks import caption_peer, caption_search, captioning
from experiments.benchmarks.run import run_cases
from experiments.benchmarks.tables import format_table
from experiments.benchmarks.timing import Case
from flaxnets.decoders.cells import MaxoutLSTMCell
from flaxnets.decoders.hypotheses import EOS, UNK
from flaxnets.decoders.search import SearchOptions
from flaxnets.decoders.show_attend_tell import Att2in

V, R, D, F = 30, 4, 8, 8
OPTIONS = SearchOptions(beam_size=3, max_steps=20)


def images(number: int) -> np.ndarray:
    return np.random.default_rng(1).random((number, R, D), np.float32).astype(np.float16)


def search(decoder: Any, params: Any, features: np.ndarray, options: SearchOptions) -> Any:
    return caption_search.SearchStep(decoder, params, features, len(features), options)()


@pytest.mark.stress
def test_every_way_is_measured() -> None:
    cases = [
        *captioning.training_cases(3, R, D, F, V, num_batches=2),
        *caption_search.search_cases(
            num_images=4, num_regions=R, width=D, features=F, vocabulary_size=V, batch_size=2
        ),
    ]
    results = run_cases(cases, rounds=1, pause=0)
    assert list(results) == [
        "soft attention, 8 units, B=3, 4×8, training step, one batch",
        "soft attention, 8 units, B=3, 4×8, training step, each with its batches",
        "soft attention, 4×8, beam 5 in batches of 2, an image",
    ]
    for case, row in zip(cases, results.values(), strict=True):
        assert row.keys() == case.ways.keys()
        assert next(iter(row)) == caption_peer.OURS
        assert all(numbers["milliseconds"] > 0 for numbers in row.values())
    assert results[cases[0].name][caption_peer.OURS]["temporary_mebibytes"] > 0
    header = format_table(results).splitlines()[0]
    assert all(
        f"times as fast as {way} |" in header
        for case in cases
        for way in case.ways
        if way != caption_peer.OURS
    )


def test_times_are_those_of_one_item() -> None:
    wait = lambda: partial(time.sleep, 0.02)  # noqa: E731
    case = Case("x", {"ours": wait, "peer": wait}, items={"ours": 100})
    row = run_cases([case], rounds=1, pause=0)["x"]
    assert 0.2 <= row["ours"]["milliseconds"] < 10
    assert row["peer"]["milliseconds"] >= 20
    assert row["peer"]["ours_is_times_as_fast"] > 10


def test_lengths_are_those_of_flickr8k() -> None:
    words = caption_peer.draw_batch(5_000, 1, 1, V)["token_lengths"] - 1
    assert words.min() >= 3
    assert abs(words.mean() - 10.8) < 0.2
    assert abs(words.std() - 3.7) < 0.2


def test_batch_is_padded_after_the_end() -> None:
    batch = caption_peer.draw_batch(20, R, D, V)
    for (tokens,), (length,) in zip(batch["tokens"], batch["token_lengths"], strict=True):
        assert tokens[length - 1] == EOS
        assert (tokens[: length - 1] > UNK).all()
        assert (tokens[length:] == 0).all()
    assert batch["tokens"].shape[-1] == batch["token_lengths"].max()


def test_both_sides_train_on_the_same_captions() -> None:
    similar, mixed = (
        captioning.draw_batches(6, 10, R, D, V, similar=similar) for similar in (True, False)
    )
    for batches in (similar, mixed):
        rows = [row for batch in batches for row in batch["index"]]
        assert sorted(rows) == list(range(60))
        assert all((b["tokens"].shape[-1] >= b["token_lengths"]).all() for b in batches)
    words = [sum(b["tokens"].size for b in batches) for batches in (similar, mixed)]
    valid = sum(b["token_lengths"].sum() for b in mixed)
    assert valid < words[0] < 1.2 * valid
    assert words[1] > 1.4 * valid


@pytest.fixture(scope="module")
def searched() -> tuple[Any, list[list[int]]]:
    """Parameters with a counting unit, and the captions of flaxnets' search with them."""
    decoder = caption_peer.make_decoder(V, F)
    params = caption_search.make_counting_params(decoder, R, D)
    return params, search(decoder, params, images(8), OPTIONS)


def test_captions_end_at_different_lengths(searched: Any) -> None:
    captions = searched[1]
    assert all(EOS not in words[:-1] and words[-1] == EOS for words in captions)
    assert len({len(words) for words in captions}) > 2


@pytest.fixture(scope="module")
def trained() -> tuple[Any, dict[str, np.ndarray], float]:
    """Initial parameters, a batch, and the loss of flaxnets' first step, without dropout."""
    batch = caption_peer.draw_batch(6, R, D, V)
    step = captioning.TrainingStep(caption_peer.make_decoder(V, F, dropout_rate=0.0), [batch])
    params = jax.tree.map(np.array, step.params)
    return params, batch, step()


@pytest.fixture
def peers() -> Any:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from experiments.benchmarks import torch_captioning

    return torch_captioning


def load(peers: Any, kind: Any, params: Any) -> Any:
    """Returns the peer's decoder with flaxnets' parameters and activations."""
    import torch

    decoder = kind(V, D, F, 0.0, activation=torch.tanh, start_activation=torch.tanh)
    peers.load_soft_attention(decoder, params)
    return decoder


@pytest.mark.parametrize("kind", ["SoftAttention", "HoistedSoftAttention"])
def test_training_losses_agree(peers: Any, trained: Any, kind: str) -> None:
    params, batch, ours = trained
    decoder = load(peers, getattr(peers, kind), params)
    loss = peers.caption_loss(decoder, *peers.to_tensors(batch))
    np.testing.assert_allclose(float(loss.detach()), ours, rtol=1e-5)


@pytest.mark.parametrize("name", ["search_one_by_one", "search_in_batch"])
def test_searches_agree(peers: Any, searched: Any, name: str) -> None:
    import torch

    from experiments.benchmarks import torch_caption_search

    params, ours = searched
    decoder = load(peers, peers.SoftAttention, params).eval()
    regions = torch.tensor(images(8).astype(np.float32))
    with torch.inference_mode():
        found = getattr(torch_caption_search, name)(decoder, regions, 3, 20)
    assert found == ours


def test_att2in_agrees(peers: Any) -> None:
    import torch

    from experiments.benchmarks import torch_caption_search

    ours = Att2in(
        vocabulary_size=V,
        embed_features=F,
        attention_features=F,
        make_cell=partial(MaxoutLSTMCell, F),
    )
    params = caption_search.draw_params(ours, R, D)
    # With these, the peer's ReLU and its projection of regions are identities.
    params["embedding"] = abs(params["embedding"])
    params["vocabulary_kernel"] *= 10
    params["vocabulary_bias"][: UNK + 1] = [-100, -100, 2, -100]
    theirs = peers.Att2in(V, D, F)
    state = {
        "narrow.weight": np.eye(F), "narrow.bias": np.zeros(F),
        "keys.weight": params["key_kernel"].T, "keys.bias": params["key_bias"],
        "query.weight": params["query_kernel"].T, "query.bias": np.zeros(F),
        "score.weight": params["score_vector"][None], "score.bias": np.zeros(1),
        "embedding.weight": params["embedding"],
        "words.weight": params["cell"]["input_kernel"].T, "words.bias": params["cell"]["bias"],
        "hidden.weight": params["cell"]["hidden_kernel"].T, "hidden.bias": np.zeros(5 * F),
        "context.weight": params["context_kernel"].T, "context.bias": np.zeros(2 * F),
        "vocabulary.weight": params["vocabulary_kernel"].T,
        "vocabulary.bias": params["vocabulary_bias"],
    }  # fmt: skip
    theirs.load_state_dict({name: torch.tensor(x) for name, x in state.items()})
    features = images(8)
    regions = torch.tensor(features.astype(np.float32))
    with torch.inference_mode():
        found = torch_caption_search.search_in_batch(theirs.eval(), regions, 3, 20)
    assert found == search(ours, params, features, OPTIONS)
