"""Generated tasks: determinism in (seed, index), the reference's conventions."""

import numpy as np
import pytest

from data.series.generated import AddingProblem, CopyMemory


def test_adding_problem() -> None:
    source = AddingProblem(60, 400)
    examples = [source[i] for i in range(400)]
    inputs = np.stack([e["inputs"] for e in examples])
    targets = np.stack([e["targets"] for e in examples])
    assert inputs.shape == (400, 60, 2)
    assert inputs.dtype == targets.dtype == np.float32
    assert ((inputs[..., 0] >= 0) & (inputs[..., 0] < 1)).all()
    assert set(np.unique(inputs[..., 1])) == {0, 1}
    np.testing.assert_array_equal(inputs[..., 1].sum(1), 2)
    np.testing.assert_allclose(inputs.prod(2).sum(1), targets[:, 0], rtol=1e-6)
    # Of all pairs of 60 steps 29 of 59 lie in one half.
    halves = inputs[:, :30, 1].sum(1)
    assert 0.4 < np.mean(halves != 1) < 0.58
    # Always answering 1 has the variance of the sum of two uniform numbers.
    assert np.mean((targets - 1) ** 2) == pytest.approx(1 / 6, abs=0.03)


@pytest.mark.parametrize("delay", [1, 7, 100])
def test_copy_memory(delay: int) -> None:
    source = CopyMemory(delay, 50)
    symbols = []
    for index in range(50):
        example = source[index]
        tokens, targets = example["tokens"], example["targets"]
        assert tokens.shape == targets.shape == (delay + 20,)
        assert tokens.dtype == targets.dtype == np.int32
        assert not tokens[10 : 9 + delay].any()
        assert (tokens[9 + delay :] == 9).all()
        assert not targets[: delay + 10].any()
        np.testing.assert_array_equal(targets[delay + 10 :], tokens[:10])
        assert example["target_mask"].all()
        symbols.append(tokens[:10])
    assert set(np.unique(symbols)) == set(range(1, 9))
    # The guess in the last ten of all steps.
    assert source.baseline == pytest.approx(10 * np.log(8) / (delay + 20))


@pytest.mark.parametrize("make", [AddingProblem, CopyMemory])
def test_examples_depend_on_seed_split_and_index_alone(make: type) -> None:
    a, b = make(30, 5), make(30, 900)
    key = "inputs" if make is AddingProblem else "tokens"
    np.testing.assert_array_equal(a[3][key], b[3][key])
    others = [make(30, 5, seed=1)[3], make(30, 5, split="test")[3], a[2]]
    assert all((a[3][key] != other[key]).any() for other in others)
    assert a.describe() != make(30, 5, seed=1).describe()
    assert repr(a) != repr(b)


@pytest.mark.parametrize("make", [AddingProblem, CopyMemory])
def test_wrong_arguments(make: type) -> None:
    with pytest.raises(ValueError, match=r"expected at least [12]"):
        make(0)
    with pytest.raises(ValueError, match="num_examples: expected at least 1, received 0"):
        make(30, 0)
    with pytest.raises(ValueError, match="split: expected one of train, validation, test"):
        make(30, split="dev")
    with pytest.raises(ValueError, match="seed: expected at least 0"):
        make(30, seed=-1)
    with pytest.raises(IndexError, match=r"expected 0 to 4, received -1"):
        make(30, 5)[-1]
