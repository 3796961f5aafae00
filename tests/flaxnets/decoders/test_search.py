"""Greedy search against a loop, dispatch of options, ensembles, errors."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxnets.decoders.beam_search import beam_search
from flaxnets.decoders.hypotheses import BOS, EOS, Hypotheses
from flaxnets.decoders.sampling import greedy_search, sample
from flaxnets.decoders.search import SearchOptions, ensemble, search_captions
from flaxnets.typing import Array
from tests.flaxnets.decoders.search_reference import (
    WORDS,
    Answer,
    Decoder,
    answers_of,
    assert_equal_trees,
    assert_same,
    repeats,
)

B = 12


def loop(decoder: Decoder, hidden: np.ndarray, length: int, ngram: int, unknown: bool) -> Answer:
    tokens: tuple[int, ...] = ()
    total = 0.0
    while len(tokens) < length and EOS not in tokens:
        hidden, log_probs = decoder.step(hidden, tokens[-1] if tokens else BOS)
        choices = [
            word
            for word in (EOS, *((3,) if unknown else ()), *WORDS)
            if word == EOS or not ngram or not repeats((*tokens, word), ngram)
        ]
        word = max(choices, key=lambda choice: log_probs[choice])
        total += log_probs[word]
        tokens += (word,)
    return Answer(tokens, total, total / len(tokens), tokens[-1] == EOS)


@pytest.mark.parametrize(("ngram", "unknown"), [(0, False), (2, False), (3, True)])
def test_greedy_search_equals_a_loop(ngram: int, unknown: bool) -> None:
    decoder = Decoder(1, end=-0.5)
    carry = decoder.initial(B)
    found = jax.jit(
        lambda own: greedy_search(
            decoder.decode_step(),
            own,
            max_steps=9,
            length_normalization="mean",
            no_repeat_ngram_size=ngram,
            forbid_unknown=not unknown,
        )
    )(carry)
    for row in range(B):
        assert_same(answers_of(found, row), [loop(decoder, carry[row], 9, ngram, unknown)])


def test_shapes_and_dtypes() -> None:
    decoder = Decoder(2)
    key = jax.random.key(0)
    for method, k in (("greedy", 1), ("sample", 4), ("beam", 3)):
        options = SearchOptions(method=method, max_steps=5, num_samples=4)
        found = jax.eval_shape(
            lambda own, options=options: search_captions(decoder.decode_step(), own, options, key),
            decoder.initial(B),
        )
        described = [(leaf.shape, leaf.dtype) for leaf in found]
        assert described == [
            ((B, k, 5), jnp.int32),
            ((B, k), jnp.int32),
            ((B, k), jnp.float32),
            ((B, k), jnp.float32),
            ((B, k), jnp.bool_),
        ]


def test_every_option_reaches_its_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each field differs from its default, so that a forgotten one shows."""
    options = SearchOptions("beam", 7, "wu", 0.3, 4, False, 6, 2, 0.25, 5, 0.5, 9, 0.75)
    values = dataclasses.asdict(options)
    for name, default in dataclasses.asdict(SearchOptions()).items():
        assert name == "method" or values[name] != default
    shared = {
        "max_steps",
        "length_normalization",
        "length_alpha",
        "no_repeat_ngram_size",
        "forbid_unknown",
    }
    own = {
        "greedy": set(),
        "sample": {"num_samples", "temperature", "top_k", "top_p"},
        "beam": {"beam_size", "num_groups", "diversity_penalty"},
    }
    functions = {"greedy": "greedy_search", "sample": "sample", "beam": "beam_search"}
    for method, function in functions.items():
        received: dict[str, Any] = {}
        monkeypatch.setattr(
            f"flaxnets.decoders.search.{function}",
            lambda *_, received=received, **given: received.update(given),
        )
        search_captions(
            Decoder(0).decode_step(),
            (),
            dataclasses.replace(options, method=method),
            jax.random.key(0),
            batch_size=3,
        )
        expected = {name: values[name] for name in shared | own[method]} | {"batch_size": 3}
        assert received == expected


def test_an_ensemble_of_equals_is_its_member() -> None:
    decoder = Decoder(3, end=-1.0)
    carry = decoder.initial(B)
    decode_step = decoder.decode_step()

    @jax.jit
    def both(own: Array) -> tuple[Hypotheses, Hypotheses]:
        options = SearchOptions(beam_size=3, max_steps=6)
        return search_captions(ensemble([decode_step] * 3), (own,) * 3, options), search_captions(
            decode_step, own, options
        )

    together, alone = both(carry)
    assert_equal_trees(together, alone)


def test_an_ensemble_has_the_mean_probability() -> None:
    decoders = [Decoder(4), Decoder(5)]
    carries = tuple(decoder.initial(B) for decoder in decoders)
    tokens = jnp.full((B,), BOS)
    after, logits = ensemble([decoder.decode_step() for decoder in decoders])(carries, tokens)
    expected = np.mean(
        [
            [np.exp(decoder.step(hidden, BOS)[1]) for hidden in carry]
            for decoder, carry in zip(decoders, carries, strict=True)
        ],
        axis=0,
    )
    np.testing.assert_allclose(jnp.exp(logits), expected, rtol=1e-5)
    for decoder, carry, new in zip(decoders, carries, after, strict=True):
        np.testing.assert_array_equal(new, decoder.decode_step()(carry, tokens)[0])


def test_unknown_methods_and_bad_ensembles_are_refused() -> None:
    decoder = Decoder(0)
    carry = decoder.initial(2)
    with pytest.raises(ValueError, match=r"method: expected one of .* received stochastic"):
        search_captions(decoder.decode_step(), carry, SearchOptions(method="stochastic"))
    with pytest.raises(ValueError, match="key: expected a key for the method sample"):
        search_captions(decoder.decode_step(), carry, SearchOptions(method="sample"))
    with pytest.raises(ValueError, match="decode_steps: expected at least one"):
        ensemble([])
    decode_step = ensemble([decoder.decode_step(), decoder.decode_step()])
    with pytest.raises(ValueError, match="carry: expected a tuple of 2 carries, received 3"):
        greedy_search(decode_step, (carry,) * 3, max_steps=3)
    with pytest.raises(ValueError, match="decode_steps: expected logits of one shape"):
        greedy_search(
            ensemble([decoder.decode_step(), Decoder(0, vocabulary=9).decode_step()]),
            (carry, carry),
            max_steps=3,
        )


@pytest.mark.parametrize(
    ("decode_step", "message"),
    [
        (lambda h, t: (h.astype(jnp.bfloat16), h), "decode_step: expected a carry like its own"),
        (lambda h, t: ((h, h), h), "decode_step: expected a carry like its own"),
        (
            lambda h, t: (h, h[0]),
            r"decode_step: expected logits \(2,V\) with V > 3, received .*\(6,\)",
        ),
        (lambda h, t: (h, h[:, :3]), r"decode_step: expected logits .* received shape \(2, 3\)"),
        (lambda h, t: (h, h.astype(jnp.int32)), "decode_step: expected logits of a float dtype"),
    ],
)
def test_bad_steps(decode_step: Any, message: str) -> None:
    carry = jnp.zeros((2, 6))
    for function in (
        lambda: greedy_search(decode_step, carry, max_steps=3),
        lambda: sample(decode_step, carry, jax.random.key(0), max_steps=3),
        lambda: beam_search(decode_step, carry, beam_size=2, max_steps=3),
    ):
        with pytest.raises(ValueError, match=message):
            function()


@pytest.mark.parametrize("carry", [(), jnp.float32(0), (jnp.zeros((2, 6)), jnp.zeros((3, 6)))])
def test_carries_of_unknown_batch_size_are_refused(carry: Any) -> None:
    with pytest.raises(ValueError, match="carry: expected arrays"):
        greedy_search(lambda own, tokens: (own, jnp.zeros((2, 6))), carry, max_steps=3)
