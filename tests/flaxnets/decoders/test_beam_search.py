"""Beam search against all sentences, against a search with Python lists, and against itself."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from flaxnets.decoders.beam_search import beam_search, block_top_k
from flaxnets.decoders.hypotheses import EOS, Hypotheses
from flaxnets.decoders.sampling import greedy_search
from tests.flaxnets.decoders.search_reference import (
    Decoder,
    answers_of,
    assert_equal_trees,
    assert_same,
    exhaustive,
    normalizer,
    reference_beam,
    repeats,
)

FORMS = [("none", 0.0), ("mean", 0.0), ("wu", 0.9)]
B = 6


def run(decoder: Decoder, carry: Any, **options: Any) -> Hypotheses:
    return jax.jit(lambda own: beam_search(decoder.decode_step(), own, **options))(carry)


@pytest.mark.parametrize(("form", "alpha"), FORMS)
def test_a_beam_as_wide_as_the_tree_finds_every_sentence(form: str, alpha: float) -> None:
    decoder = Decoder(0)
    carry = decoder.initial(3)
    beam = 3**4 * 4  # All continuations of all beginnings of four words.
    found = run(
        decoder,
        carry,
        beam_size=beam,
        max_steps=5,
        length_normalization=form,
        length_alpha=alpha,
    )
    for row in range(3):
        best = exhaustive(decoder, carry[row], 5, normalizer(form, alpha))
        assert_same(answers_of(found, row), best)


@pytest.mark.parametrize(
    ("form", "alpha", "ngram"), [("none", 0.0, 2), ("mean", 0.0, 0), ("wu", 0.9, 0)]
)
def test_a_beam_of_one_is_greedy_search(form: str, alpha: float, ngram: int) -> None:
    decoder = Decoder(1, end=-0.5)
    carry = decoder.initial(20)
    options: dict[str, Any] = {
        "max_steps": 8,
        "length_normalization": form,
        "length_alpha": alpha,
        "no_repeat_ngram_size": ngram,
    }
    beam = run(decoder, carry, beam_size=1, **options)
    greedy = jax.jit(lambda own: greedy_search(decoder.decode_step(), own, **options))(carry)
    assert_equal_trees(beam, greedy)
    assert 0 < np.sum(greedy.ended) < 20  # Both kinds of end occur.


@pytest.mark.parametrize(
    "options",
    [
        {"beam_size": 3},
        {"beam_size": 3, "form": "mean"},
        {"beam_size": 4, "form": "wu", "alpha": 0.7, "ngram": 2},
        {"beam_size": 3, "ngram": 3, "end": -3.0},
        {"beam_size": 3, "ngram": 20, "end": -3.0},
        {"beam_size": 4, "groups": 2, "penalty": 0.7},
        {"beam_size": 6, "groups": 3, "penalty": 1.5, "form": "mean", "ngram": 2},
        {"beam_size": 3, "groups": 3, "penalty": 0.4, "form": "wu", "alpha": 1.0, "unknown": True},
        {"beam_size": 3, "end": -30.0, "form": "mean"},
    ],
    ids=str,
)
def test_equals_a_search_with_lists(options: dict[str, Any]) -> None:
    options = {"form": "none", "alpha": 0.0, "end": -1.0, "unknown": False} | options
    norm = normalizer(options["form"], options["alpha"])
    decoder = Decoder(2, end=options["end"])
    carry = decoder.initial(B)
    found = run(
        decoder,
        carry,
        beam_size=options["beam_size"],
        max_steps=9,
        length_normalization=options["form"],
        length_alpha=options["alpha"],
        no_repeat_ngram_size=options.get("ngram", 0),
        num_groups=options.get("groups", 1),
        diversity_penalty=options.get("penalty", 0.0),
        forbid_unknown=not options["unknown"],
    )
    shared = {name: options[name] for name in ("ngram", "groups", "penalty") if name in options}
    for row in range(B):
        expected = reference_beam(
            decoder,
            carry[row],
            beam_size=options["beam_size"],
            length=9,
            norm=norm,
            unknown=options["unknown"],
            **shared,
        )
        assert_same(answers_of(found, row), expected)


@pytest.mark.parametrize(
    ("form", "alpha", "groups"), [("none", 0.0, 1), ("mean", 0.0, 1), ("wu", 0.9, 2)]
)
def test_the_early_exit_changes_nothing(form: str, alpha: float, groups: int) -> None:
    decoder = Decoder(3, end=1.0)
    carry = decoder.initial(30)
    options: dict[str, Any] = {
        "beam_size": 4,
        "max_steps": 12,
        "length_normalization": form,
        "length_alpha": alpha,
        "num_groups": groups,
        "diversity_penalty": 0.5,
    }
    early = run(decoder, carry, **options)
    late = run(decoder, carry, early_exit=False, **options)
    for one, other in zip(early, late, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_early_exit_saves_steps() -> None:
    steps: list[int] = []

    def decode_step(carry: Any, tokens: Any) -> Any:
        jax.debug.callback(lambda: steps.append(1))
        return carry, jnp.tile(jnp.where(jnp.arange(7) == EOS, 5.0, 0.0), (tokens.shape[0], 1))

    found = beam_search(decode_step, jnp.zeros((2, 1)), beam_size=2, max_steps=50)
    jax.block_until_ready(found)
    jax.effects_barrier()
    assert len(steps) < 50
    assert np.all(found.ended)


def test_a_batch_equals_single_runs_and_its_permutation() -> None:
    decoder = Decoder(4, end=-1.0)
    carry = decoder.initial(B)
    options: dict[str, Any] = {"beam_size": 3, "max_steps": 7, "length_normalization": "mean"}
    batch = run(decoder, carry, **options)
    single = jax.jit(lambda own: beam_search(decoder.decode_step(), own, **options))
    for row in range(B):
        one = single(carry[row : row + 1])
        assert_equal_trees(one, jax.tree.map(lambda x, row=row: x[row : row + 1], batch))
    order = np.random.default_rng(0).permutation(B)
    assert_equal_trees(
        run(decoder, carry[order], **options), jax.tree.map(lambda x: x[order], batch)
    )


def test_no_trigram_occurs_twice() -> None:
    decoder = Decoder(5, end=-30.0)
    carry = decoder.initial(B)
    free = run(decoder, carry, beam_size=3, max_steps=14)
    blocked = run(decoder, carry, beam_size=3, max_steps=14, no_repeat_ngram_size=3)
    for found, expected in ((free, True), (blocked, False)):
        sentences = [answer.tokens for row in range(B) for answer in answers_of(found, row)]
        assert any(repeats(words, 3) for words in sentences) == expected


def test_groups_without_a_penalty_are_beams_of_their_own() -> None:
    decoder = Decoder(6)
    carry = decoder.initial(B)
    groups = run(decoder, carry, beam_size=6, num_groups=3, max_steps=6)
    alone = run(decoder, carry, beam_size=2, max_steps=6)
    for row in range(B):
        expected = [answer for answer in answers_of(alone, row) for _ in range(3)]
        assert_same(answers_of(groups, row), expected)


def test_a_penalty_makes_groups_differ() -> None:
    decoder = Decoder(6)
    carry = decoder.initial(B)

    def distinct(penalty: float) -> int:
        found = run(
            decoder, carry, beam_size=6, num_groups=3, max_steps=6, diversity_penalty=penalty
        )
        return sum(len({a.tokens for a in answers_of(found, row)}) for row in range(B))

    assert distinct(2.0) > distinct(0.0)


@pytest.mark.parametrize("ngram", [0, 1])
def test_captions_that_never_end_are_returned(ngram: int) -> None:
    """Without ``<eos>`` and with every word blocked, nothing is blocked."""
    decoder = Decoder(7, end=-np.inf)
    carry = decoder.initial(B)
    found = run(decoder, carry, beam_size=3, max_steps=6, no_repeat_ngram_size=ngram)
    for row in range(B):
        answers = answers_of(found, row)
        assert len(answers) == 3
        for answer in answers:
            assert not answer.ended
            assert len(answer.tokens) == 6
            expected = decoder.log_prob(carry[row], answer.tokens)
            np.testing.assert_allclose(answer.log_prob, expected, rtol=1e-5)


def test_an_unfinished_answer_only_where_none_ended() -> None:
    decoder = Decoder(8, end=-3.0)
    carry = decoder.initial(40)
    found = run(decoder, carry, beam_size=3, max_steps=6)
    some = np.any(found.ended, axis=1)
    assert 0 < np.sum(some) < 40
    for row in range(40):
        assert {answer.ended for answer in answers_of(found, row)} == {bool(some[row])}


def test_carries_are_any_pytree_and_memory_is_closed_over() -> None:
    decoder = Decoder(9)
    carry = decoder.initial(B)
    decode_step = decoder.decode_step()
    memory = jnp.asarray(decoder.initial(B, seed=1))

    def inside(own: Any, tokens: Any) -> Any:
        hidden, logits = decode_step(own["hidden"][0] + memory, tokens)
        return {"hidden": (hidden - memory,), "step": own["step"] + 1}, logits

    def carried(own: Any, tokens: Any) -> Any:
        hidden, constant = own
        hidden, logits = decode_step(hidden + constant, tokens)
        return (hidden - constant, constant), logits

    def search(step: Any, own: Any) -> Hypotheses:
        return jax.jit(lambda x: beam_search(step, x, beam_size=3, max_steps=6))(own)

    start = {"hidden": (jnp.asarray(carry),), "step": jnp.zeros((B,), jnp.int32)}
    assert_equal_trees(search(inside, start), search(carried, (jnp.asarray(carry), memory)))


def test_a_decoder_without_a_carry() -> None:
    logits = jnp.log(jnp.array([0.1, 0.1, 0.3, 0.1, 0.4]))

    def decode_step(carry: Any, tokens: Any) -> Any:
        return carry, jnp.broadcast_to(logits, (tokens.shape[0], 5))

    found = beam_search(decode_step, (), beam_size=2, max_steps=3, batch_size=2)
    assert [answer.tokens for answer in answers_of(found, 1)] == [(EOS,), (4, EOS)]
    np.testing.assert_allclose(found.log_probs[0], np.log([0.3, 0.12]), rtol=1e-6)


def test_a_batch_sharded_over_eight_devices() -> None:
    decoder = Decoder(10, vocabulary=700)  # Wide enough for the search by blocks.
    carry = decoder.initial(16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(carry, NamedSharding(mesh, PartitionSpec("data")))
    options: dict[str, Any] = {"beam_size": 3, "max_steps": 5, "no_repeat_ngram_size": 2}
    assert_equal_trees(run(decoder, sharded, **options), run(decoder, carry, **options))


@pytest.mark.parametrize(("n", "k"), [(5, 5), (100, 1), (641, 3), (5000, 5), (5000, 78)])
def test_block_top_k_equals_top_k(n: int, k: int) -> None:
    rng = np.random.default_rng(n)
    values = rng.normal(size=(4, n)).astype(np.float32)
    values[1] = np.round(values[1])  # Many ties.
    values[2] = -np.inf
    values[3, rng.permutation(n)[: n - 1]] = -np.inf
    actual = jax.jit(partial(block_top_k, k=k))(values)
    for one, other in zip(actual, jax.lax.top_k(values, k), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "beam_size: expected at least 1, received 0"),
        ({"max_steps": 0}, "max_steps: expected at least 1, received 0"),
        ({"num_groups": 2}, "num_groups: expected a divisor of beam_size 3, received 2"),
        ({"num_groups": 0}, "num_groups: expected at least 1"),
        ({"diversity_penalty": -1.0}, "diversity_penalty: expected at least 0"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size: expected at least 0"),
        ({"length_normalization": "sum"}, "length_normalization: expected one of"),
        ({"length_alpha": float("nan")}, "length_alpha: expected at least 0"),
        ({"batch_size": 3}, r"carry: expected arrays .* received first axes of sizes \[2, 3\]"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    decoder = Decoder(0)
    options = {"beam_size": 3, "max_steps": 4} | options
    with pytest.raises(ValueError, match=message):
        beam_search(decoder.decode_step(), decoder.initial(2), **options)
