"""Captioner on images, videos and cached features: freezing, padding, decoding."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from flaxnets.decoders.show_and_tell import ShowAndTell
from flaxnets.decoders.show_attend_tell import SoftAttention
from flaxnets.encoders.small_cnn import SmallCNN
from flaxnets.models.captioner import Captioner
from flaxnets.models.crnn import CRNN
from flaxnets.recurrent.cells import GRUCell, LSTMCell
from flaxnets.recurrent.layers import Recurrent
from tests.flaxnets.models.networks import ThreeLevels, every_parameter_trains, random_variables

B, C, L, V, T, S = 3, 2, 4, 8, 4, 8
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(2, V, (B, C, L)).astype(np.int32)
TOKEN_LENGTHS = np.array([[4, 2], [1, 3], [3, 0]], np.int32)
VALID = np.arange(L) < TOKEN_LENGTHS[..., None]
IMAGES = RNG.integers(0, 256, (B, S, S, 3)).astype(np.uint8)
VIDEO = RNG.integers(0, 256, (B, T, S, S, 3)).astype(np.uint8)
LENGTHS = np.array([4, 2, 1], np.int32)
DECODER = SoftAttention(
    vocabulary_size=V,
    make_cell=partial(LSTMCell, 4),
    embed_features=3,
    attention_features=5,
    dropout_rate=0.0,
)


def make(**options: Any) -> Captioner:
    return Captioner(**({"decoder": DECODER, "encoder": SmallCNN((4, 6), (2, 2))} | options))


def make_video_captioner() -> Captioner:
    crnn = CRNN(None, SmallCNN((4, 6), (2, 2)), Recurrent(partial(GRUCell, 5)))
    return make(encoder=crnn)


def test_images_are_captioned_from_their_feature_maps() -> None:
    model = make()
    variables = random_variables(model, IMAGES, TOKENS, TOKEN_LENGTHS)
    outputs = model.apply(variables, IMAGES, TOKENS, TOKEN_LENGTHS, train=False)
    of_encoder = {name: group["encoder"] for name, group in variables.items()}
    maps = SmallCNN((4, 6), (2, 2)).apply(of_encoder, IMAGES, train=False)
    params = {"params": variables["params"]["decoder"]}
    cached = DECODER.apply(params, maps, TOKENS, TOKEN_LENGTHS, train=False)
    np.testing.assert_allclose(outputs.logits[VALID], cached.logits[VALID], rtol=1e-4, atol=1e-5)
    from_features = make(encoder=None).apply(
        {"params": {"decoder": params["params"]}}, maps, TOKENS, TOKEN_LENGTHS, train=False
    )
    np.testing.assert_array_equal(from_features.logits, cached.logits)


@pytest.mark.parametrize("frozen", ["neither", "statistics", "encoder"])
def test_encoders_are_trained_or_fine_tuned_or_frozen(frozen: str) -> None:
    model = make(freeze_encoder=frozen == "encoder", freeze_statistics=frozen == "statistics")
    variables = random_variables(model, IMAGES, TOKENS, TOKEN_LENGTHS)

    def loss(params: Any) -> Any:
        outputs, new = model.apply(
            {**variables, "params": params},
            IMAGES,
            TOKENS,
            TOKEN_LENGTHS,
            train=True,
            mutable=["batch_stats"],
        )
        return (VALID[..., None] * outputs.logits**2).sum(), new

    gradients, new = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    every_parameter_trains(gradients["decoder"])
    if frozen == "encoder":
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["encoder"]))
    else:
        every_parameter_trains(gradients["encoder"])
    moved = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), new, {"batch_stats": variables["batch_stats"]}
    )
    assert all(flag == (frozen == "neither") for flag in jax.tree.leaves(moved))


def test_examples_outside_the_mask_change_no_statistics() -> None:
    model = make()
    variables = random_variables(model, IMAGES, TOKENS, TOKEN_LENGTHS)
    mask = np.array([True, True, False])
    found = []
    for last in (0, 255):
        images = IMAGES.copy()
        images[2] = last
        call = (images, TOKENS, TOKEN_LENGTHS, None, mask)
        found.append(model.apply(variables, *call, train=True, mutable=["batch_stats"])[1])
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_videos_are_captioned_from_their_valid_steps() -> None:
    model = make_video_captioner()
    variables = random_variables(model, VIDEO, TOKENS, TOKEN_LENGTHS, LENGTHS)
    run = jax.jit(partial(model.apply, train=False))
    outputs = run(variables, VIDEO, TOKENS, TOKEN_LENGTHS, LENGTHS)
    exists = np.arange(T) < LENGTHS[:, None]
    assert not np.any(outputs.attention * ~exists[:, None, None])
    np.testing.assert_allclose(outputs.attention.sum(-1), VALID, atol=1e-6)
    padded = np.where(exists[..., None, None, None], VIDEO, 77).astype(np.uint8)
    other = run(variables, padded, TOKENS, TOKEN_LENGTHS, LENGTHS)
    np.testing.assert_array_equal(outputs.logits, other.logits)

    def loss(params: Any) -> Any:
        logits = run({**variables, "params": params}, VIDEO, TOKENS, TOKEN_LENGTHS, LENGTHS).logits
        return (VALID[..., None] * logits**2).sum()

    every_parameter_trains(jax.grad(loss)(variables["params"]))


@pytest.mark.parametrize("kind", ["images", "video", "features"])
def test_word_by_word_logits_are_those_of_teacher_forcing(kind: str) -> None:
    features = RNG.normal(size=(B, 5, 6)).astype(np.float16)
    model, given = {
        "images": (make(), (IMAGES,)),
        "video": (make_video_captioner(), (VIDEO, LENGTHS)),
        "features": (make(encoder=None), (features,)),
    }[kind]
    inputs, *lengths = given
    variables = random_variables(model, inputs, TOKENS, TOKEN_LENGTHS, *lengths)
    outputs = model.apply(variables, inputs, TOKENS, TOKEN_LENGTHS, *lengths, train=False)
    memory, carry = model.apply(variables, *given, method="start_decoding")
    assert all(len(leaf) == B for leaf in jax.tree.leaves((memory, carry)))
    decode_step = jax.jit(partial(model.apply, method="decode_step"))
    previous = np.ones(B, np.int32)
    for t in range(L):
        carry, logits, attention = decode_step(variables, memory, carry, previous)
        valid = VALID[:, 0, t]
        for one, other in ((logits, outputs.logits), (attention, outputs.attention)):
            np.testing.assert_allclose(one[valid], other[valid, 0, t], rtol=1e-4, atol=1e-5)
        previous = TOKENS[:, 0, t]


def test_hypotheses_of_an_image_share_its_memory() -> None:
    model = make(encoder=None)
    features = RNG.normal(size=(B, 5, 6)).astype(np.float32)
    variables = random_variables(model, features, TOKENS, TOKEN_LENGTHS)
    memory, carry = model.apply(variables, features, method="start_decoding")
    words = RNG.integers(0, V, (B, 3)).astype(np.int32)
    carries = jax.tree.map(lambda x: np.repeat(x[:, None], 3, axis=1), carry)

    def decode_step(carry: Any, previous: Any) -> Any:
        return model.apply(variables, memory, carry, previous, method="decode_step")

    _, logits, _ = jax.vmap(decode_step, in_axes=1, out_axes=1)(carries, words)
    for k in range(3):
        _, expected, _ = decode_step(carry, words[:, k])
        np.testing.assert_allclose(logits[:, k], expected, rtol=1e-4, atol=1e-5)


def test_bad_input_is_refused() -> None:
    model = make()
    variables = random_variables(model, IMAGES, TOKENS, TOKEN_LENGTHS)

    def call(inputs: Any, *more: Any, model: Captioner = model) -> Any:
        return model.apply(variables, inputs, TOKENS, TOKEN_LENGTHS, *more, train=False)

    with pytest.raises(ValueError, match=r"inputs: expected \(B,H,W,C\), received shape"):
        call(IMAGES[0])
    with pytest.raises(ValueError, match=r"inputs: expected a video that becomes \(B,T,D\)"):
        call(VIDEO, LENGTHS, model=make(encoder=None))
    with pytest.raises(ValueError, match="lengths: expected"):
        call(VIDEO, LENGTHS + T)
    with pytest.raises(ValueError, match="mask: expected"):
        call(IMAGES, None, np.ones(B))
    several = make(encoder=ThreeLevels())
    with pytest.raises(
        ValueError,
        match=r"encoder: expected one endpoint, received .*; name one in the encoder's levels",
    ):
        several.init(jax.random.key(0), IMAGES, TOKENS, TOKEN_LENGTHS, train=False)


def test_region_features_embed_each_region() -> None:
    features = RNG.normal(size=(B, 5, 6)).astype(np.float16)
    model = make(encoder=None, region_features=7)
    variables = random_variables(model, features, TOKENS, TOKEN_LENGTHS)
    layer = variables["params"]["embed_regions"]
    regions = np.maximum(features.astype(np.float32) @ layer["kernel"] + layer["bias"], 0)
    expected = DECODER.apply(
        {"params": variables["params"]["decoder"]}, regions, TOKENS, TOKEN_LENGTHS, train=False
    )
    outputs = model.apply(variables, features, TOKENS, TOKEN_LENGTHS, train=False)
    np.testing.assert_allclose(outputs.logits, expected.logits, rtol=1e-4, atol=1e-5)
    memory, carry = model.apply(variables, features, method="start_decoding")
    first: Any = model.apply(variables, memory, carry, np.ones(B, np.int32), method="decode_step")
    np.testing.assert_allclose(first[1], outputs.logits[:, 0, 0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="inputs: expected float features, received uint8"):
        model.apply(variables, features.astype(np.uint8), method="start_decoding")


def test_feature_dropout_drops_the_same_channels_in_all_regions() -> None:
    model = make(encoder=None, feature_dropout_rate=0.5)
    features = np.ones((B, 2, 3, 6), np.float32)
    variables = random_variables(model, features, TOKENS, TOKEN_LENGTHS)
    call = (features, TOKENS, TOKEN_LENGTHS)
    seen = []

    def look(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.name == "decoder" and context.method_name == "__call__":
            seen.append(np.asarray(args[0]))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(look):
        for seed in range(20):
            rngs = {"dropout": jax.random.key(seed)}
            model.apply(variables, *call, train=True, rngs=rngs)
    regions = np.stack(seen).reshape(20, B, 6, 6)
    np.testing.assert_array_equal(regions, regions[:, :, :1].repeat(6, axis=2))
    assert set(np.unique(regions)) == {0, 2}
    assert 0.4 < np.mean(regions[:, :, 0] == 0) < 0.6
    assert any(np.any(row[0] != row[1]) for row in regions)
    np.testing.assert_array_equal(
        model.apply(variables, *call, train=False).logits,
        make(encoder=None).apply(variables, *call, train=False).logits,
    )


def test_region_dropout_hides_regions_from_attention() -> None:
    model = make(encoder=None, region_dropout_rate=0.5)
    features = np.random.default_rng(0).normal(size=(B, 2, 2, 6)).astype(np.float32)
    variables = random_variables(model, features, TOKENS, TOKEN_LENGTHS)
    call = (features, TOKENS, TOKEN_LENGTHS)

    @jax.jit
    def attend(key: Any) -> Any:
        return model.apply(variables, *call, train=True, rngs={"dropout": key}).attention

    looked = np.stack([attend(jax.random.key(seed)) for seed in range(100)])
    looked = looked[:, :, 0, 0]  # (100,B,4), at the first word, which every caption has.
    np.testing.assert_allclose(looked.sum(-1), 1, rtol=1e-5)
    seen = looked > 0
    # Of four regions at rate 1/2, two stay on average; where none would, all do.
    assert 0.5 < seen.mean() < 0.62
    assert (seen.sum(-1) > 0).all()
    assert any(np.any(row[0] != row[1]) for row in seen)
    np.testing.assert_array_equal(
        model.apply(variables, *call, train=False).logits,
        make(encoder=None).apply(variables, *call, train=False).logits,
    )
    pooled = make(encoder=None, region_dropout_rate=0.5)
    with pytest.raises(
        ValueError, match="region_dropout_rate: expected 0 for one vector per image"
    ):
        pooled.init(
            {"params": jax.random.key(0), "dropout": jax.random.key(1)},
            features[:, 0, 0],
            TOKENS,
            TOKEN_LENGTHS,
            train=True,
        )


def test_a_decoder_of_one_vector_accepts_feature_maps_and_videos() -> None:
    decoder = ShowAndTell(vocabulary_size=V, make_cell=partial(LSTMCell, 4), embed_features=3)
    for given in ((IMAGES,), (VIDEO, LENGTHS)):
        model = (
            make(decoder=decoder)
            if len(given) == 1
            else make_video_captioner().clone(decoder=decoder)
        )
        inputs, *lengths = given
        variables = random_variables(model, inputs, TOKENS, TOKEN_LENGTHS, *lengths)
        outputs = model.apply(variables, inputs, TOKENS, TOKEN_LENGTHS, *lengths, train=False)
        assert outputs.logits.shape == (B, C, L, V)
        assert np.isfinite(outputs.logits).all()
