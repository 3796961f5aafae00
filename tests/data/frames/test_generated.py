"""Moving digits, bouncing balls, and the published file of Moving MNIST."""

import pickle

import numpy as np
import pytest

from data.frames import BouncingBalls, MovingMNIST, MovingMNISTFile, read_digits
from data.loader import Loader
from tests.data.shared_data import shared


def _digits(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (count, 28, 28), np.uint8)


def _places(frames: np.ndarray) -> np.ndarray:
    """Returns (T,2) the first row and column that are not black; digits have no black pixels."""
    lit = frames[..., 0] > 0
    return np.stack([lit.any(2).argmax(1), lit.any(1).argmax(1)], -1)


def test_a_digit_moves_straight_and_is_mirrored_at_the_borders() -> None:
    digits = _digits(1)
    source = MovingMNIST(digits, num_digits=1, num_frames=60, size=40)
    bounced = 0
    for index in range(20):
        frames = source[index]["frames"]
        assert frames.shape == (60, 40, 40, 1)
        places = _places(frames)
        assert places.min() >= 0
        assert places.max() <= 12
        for frame, (top, left) in zip(frames[..., 0], places, strict=True):
            assert np.array_equal(frame[top : top + 28, left : left + 28], digits[0])
            assert np.count_nonzero(frame) == 28 * 28
        # Whole pixels of a path with one speed: each step is rounded by less than a pixel.
        steps = np.abs(np.diff(places, axis=0))
        assert np.hypot(*steps.T).max() < 3.6 + 2**0.5
        bounced += int((np.diff(np.sign(np.diff(places[:, 0]))) != 0).any())
    assert bounced > 10


def test_the_position_follows_the_published_rules() -> None:
    """Independent reference: the rules in shares of the range, as they were published."""
    rng = np.random.default_rng(5)
    digits = _digits(4)
    source = MovingMNIST(digits, num_digits=1, num_frames=20)
    frames = source.generate(np.random.default_rng(5))
    digit = digits[rng.integers(4)]
    angle, speed = rng.uniform(0, 2 * np.pi), rng.uniform(3.6, 3.6)
    place, turn = list(rng.uniform(size=2)), [1.0, 1.0]
    for frame in frames[..., 0]:
        for axis, part in enumerate((np.sin(angle), np.cos(angle))):
            place[axis] += turn[axis] * part * speed / 36
            if place[axis] <= 0 or place[axis] >= 1:
                place[axis] = min(max(place[axis], 0), 1)
                turn[axis] = -turn[axis]
        # The two orders of multiplication differ in the last bit, at a whole pixel by one.
        top, left = (int(share * 36 + 1e-9) for share in place)
        assert np.array_equal(frame[top : top + 28, left : left + 28], digit)


def test_digits_overlap_by_the_brighter_pixel() -> None:
    pair = MovingMNIST(_digits(), num_digits=2, size=28)[0]["frames"]
    seen = {tuple(np.maximum(a, b).reshape(-1)) for a in _digits() for b in _digits()}
    assert {tuple(frame.reshape(-1)) for frame in pair} <= seen


@pytest.mark.parametrize("source", [MovingMNIST(_digits(), "test", 5), BouncingBalls("test", 5)])
def test_sequences_depend_on_seed_split_and_index_alone(source: MovingMNIST) -> None:
    again = pickle.loads(pickle.dumps(source))
    assert again.describe() == source.describe()
    for index in (0, 4):
        assert np.array_equal(again[index]["frames"], source[index]["frames"])
    assert not np.array_equal(source[0]["frames"], source[1]["frames"])
    other = type(source).__new__(type(source))
    other.__dict__ = {**source.__dict__, "split": "train"}
    assert not np.array_equal(other[0]["frames"], source[0]["frames"])
    with pytest.raises(IndexError, match="0 to 4"):
        source[5]


def test_training_draws_every_epoch_anew_and_resumes_exactly() -> None:
    source = BouncingBalls("train", 4, num_frames=3, size=8)
    loader = Loader(
        range(len(source)), batch_size=2, transform=source.draw, train=True, num_threads=0
    )
    batches = loader.batches()
    seen = [next(batches) for _ in range(6)]  # three epochs
    frames = np.concatenate([batch["frames"] for batch in seen])
    assert len({frame.tobytes() for frame in frames}) == 12
    with loader.batches() as resumed:
        resumed.set_state({"next_batch": 3, **loader.describe()})
        for batch in seen[3:]:
            for key, value in next(resumed).items():
                assert np.array_equal(value, batch[key])
    batches.close()


def test_balls_stay_in_the_box_and_keep_their_energy() -> None:
    source = BouncingBalls(num_balls=1, num_frames=200)
    track = source.positions(np.random.default_rng(1))[:, 0]
    assert track.min() > 1.2 - 0.5
    assert track.max() < 8.8 + 0.5
    assert np.ptp(track, axis=0).min() > 5  # it crosses the box
    assert np.linalg.norm(np.diff(track, axis=0), axis=1).max() == pytest.approx(0.5)
    both = BouncingBalls(num_balls=3, num_frames=400)
    track = both.positions(np.random.default_rng(2))
    speeds = np.diff(track, axis=0)
    apart = np.linalg.norm(track[:, 0] - track[:, 1], axis=-1)
    assert apart.min() > 1.2  # they never pass through one another
    # Elastic: between bounces the energy is that of the start.
    energy = np.median((speeds**2).sum((1, 2)))
    assert energy == pytest.approx(3 * 0.25, rel=1e-6)
    assert (np.linalg.norm(speeds[10:], axis=-1) > 0.55).any()  # speeds were exchanged


def test_a_ball_is_a_soft_disc_at_its_place() -> None:
    source = BouncingBalls(num_balls=1, size=20, num_frames=1)
    (place,) = source.positions(np.random.default_rng(3))[0]
    frame = source.generate(np.random.default_rng(3))[0, ..., 0]
    rows, columns = np.indices(frame.shape) * 0.5 + 0.25
    squared = ((columns - place[0]) ** 2 + (rows - place[1]) ** 2) / 1.44
    assert np.array_equal(frame, np.round(255 * np.exp(-(squared**4))))


def _write(path: object, array: np.ndarray) -> str:
    np.save(str(path), array)
    return str(path)


def test_the_published_file_is_read(tmp_path: object) -> None:
    array = np.random.default_rng(0).integers(0, 256, (20, 3, 64, 64), np.uint8)
    source = MovingMNISTFile(_write(f"{tmp_path}/mnist_test_seq.npy", array), 15)
    assert len(source) == 3
    assert np.array_equal(source[2]["frames"], array[:15, 2, ..., None])
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again[1]["frames"], source[1]["frames"])
    assert again.describe() == source.describe()


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        (
            (3, 20, 64, 64),
            "uint8",
            r"expected \(20,N,64,64\) uint8.*received \(3, 20, 64, 64\).*tra",
        ),
        ((20, 3, 32, 32), "uint8", r"64×64.*received \(20, 3, 32, 32\)"),
        ((20, 3, 64, 64), "float32", r"received \(20, 3, 64, 64\) float32"),
        ((20, 64, 64), "uint8", r"received \(20, 64, 64\)"),
    ],
)
def test_a_file_of_another_shape_is_refused(
    tmp_path: object, shape: tuple[int, ...], dtype: str, message: str
) -> None:
    path = _write(f"{tmp_path}/mnist_test_seq.npy", np.zeros(shape, dtype))
    with pytest.raises(ValueError, match=message):
        MovingMNISTFile(path)


def test_what_is_no_file_of_sequences_is_refused(tmp_path: object) -> None:
    path = _write(f"{tmp_path}/mnist_test_seq.npy", np.zeros((20, 1, 64, 64), np.uint8))
    with pytest.raises(ValueError, match=r"num_inputs \+ num_outputs: .*1 to 20.*received 30"):
        MovingMNISTFile(path, 30)
    with open(path, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match="damaged"):
        MovingMNISTFile(path)
    archive = f"{tmp_path}/train.npz"
    np.savez(archive, images=np.zeros((1, 28, 28), np.uint8))
    with pytest.raises(ValueError, match="archive of several arrays"):
        MovingMNISTFile(archive)
    with pytest.raises(FileNotFoundError, match="mnist_test_seq"):
        MovingMNISTFile(f"{tmp_path}/none.npy")


def test_the_real_digits_of_the_splits_differ() -> None:
    root = shared("mnist")
    digits = {split: read_digits(root, split) for split in ("train", "validation", "test")}
    assert [len(images) for images in digits.values()] == [50_000, 5_000, 5_000]
    assert not np.array_equal(digits["validation"][:100], digits["test"][:100])
    source = MovingMNIST(digits["test"], "test")
    assert len(source) == 10_000
    frames = source[0]["frames"]
    assert frames.shape == (20, 64, 64, 1)
    assert 2 < frames.mean() < 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_digits": 0}, "num_digits"),
        ({"size": 20}, "size: expected at least 28"),
        ({"speeds": (5.0, 3.0)}, "speeds"),
        ({"num_frames": 0}, "num_frames"),
        ({"split": "tests"}, "split: expected one of train"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MovingMNIST(_digits(), **arguments)
    with pytest.raises(ValueError, match="num_balls"):
        BouncingBalls(num_balls=7)
