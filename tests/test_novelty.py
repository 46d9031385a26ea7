"""Visit counts: the same place counts up, other places do not."""

from copy import deepcopy

import numpy as np
import pytest
from gymnasium import spaces

from sb3_muzero.exploration.count_bonus import CountBonus
from sb3_muzero.replay.packing import FramePacking
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(500),
        spaces.MultiDiscrete([9, 9, 2]),
        spaces.Box(0, 255, (48,), np.uint8),
        spaces.Box(0, 255, (7, 7, 3), np.uint8),
    ],
)
def test_integers_are_counted_as_they_are(space):
    space.seed(0)
    observations = np.array([space.sample() for _ in range(300)])
    visits = CountBonus(space)
    visits.fit(observations)
    bucket_ids = visits.update_counts(observations)
    _, inverse, counts = np.unique(observations.reshape(300, -1), axis=0, return_inverse=True, return_counts=True)
    np.testing.assert_array_equal(visits.counts[bucket_ids], counts[inverse.flatten()])
    bonuses = counts[inverse.flatten()] ** -0.5
    np.testing.assert_allclose(visits.bonus(bucket_ids), bonuses - bonuses.mean(), atol=1e-12)


def test_cells_are_as_wide_as_a_standard_deviation():
    space = spaces.Box(-np.inf, np.inf, (2,))
    rng = np.random.default_rng(0)
    visits = CountBonus(space)
    visits.fit(rng.normal([5.0, -1.0], [1e-3, 10.0], size=(10_000, 2)))
    here = np.array([[5.0005, 4.0]])
    near, far = here + np.array([1e-4, 1.0]), here + np.array([1e-3, 0.0])
    visits.update_counts(np.concatenate([here, near]))
    assert visits.counts[visits.bucket_ids(here)] == 2
    assert visits.counts[visits.bucket_ids(far)] == 0 and visits.bonus(visits.bucket_ids(far)) == pytest.approx(1 - 0.5**0.5)


def test_many_features_share_few_axes():
    space = spaces.Box(-np.inf, np.inf, (50,))
    rng = np.random.default_rng(0)
    visits = CountBonus(space)
    observations = rng.normal(size=(5000, 50))
    visits.fit(observations)
    bucket_ids = visits.update_counts(observations)
    assert 50 < len(np.unique(bucket_ids)) < 1500, "ordinary observations meet again"
    assert (visits.counts[visits.bucket_ids(10 + observations)] == 0).mean() > 0.9, "extraordinary ones do not"


def test_a_table_full_of_states_tells_them_apart():
    space = spaces.MultiDiscrete([50, 50])
    states = np.stack(np.meshgrid(np.arange(50), np.arange(50)), -1).reshape(-1, 2)
    assert len(np.unique(CountBonus(space).bucket_ids(states))) > 0.98 * len(states)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_that_look_alike_meet_though_none_comes_twice(dtype):
    """25 flickering pixels of 300 make every image another one; the object has never been in the new images' corner."""
    rng = np.random.default_rng(0)
    scale = 255 if dtype == np.uint8 else 1.0
    space = spaces.Box(0, scale, (3, 10, 10), dtype)
    images = np.zeros((8_000, 3, 10, 10), dtype)
    images[:, 0, 5, :] = scale * (rng.random((8_000, 10)) < 0.2)
    images[:, 1, :5, 1:4] = scale * (rng.random((8_000, 5, 3)) < 0.1)
    images[np.arange(8_000), 2, rng.integers(3, size=8_000), rng.integers(3, size=8_000)] = scale
    new = images[-1_000:].copy()
    new[:, 2] = 0
    new[:, 2, 9, 9] = scale
    visits = CountBonus(space)
    visits.fit(images[:4_000])
    visits.update_counts(images[:7_000])
    assert (visits.counts[visits.bucket_ids(images[-1_000:])] > 0).mean() > 0.7
    assert (visits.counts[visits.bucket_ids(new)] == 0).mean() > 0.8


def test_images_of_one_colour():
    space = spaces.Box(0, 255, (3, 8, 8), np.uint8)
    images = np.full((300, 3, 8, 8), 7, np.uint8)
    visits = CountBonus(space)
    visits.fit(images)
    assert len(np.unique(visits.update_counts(images))) == 1
    assert (visits.counts[visits.bucket_ids(images + np.uint8(100))] == 0).all()


def test_images_beside_vectors_and_integers_count_each_on_its_own():
    space = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (3, 8, 8), np.uint8),
            "key": spaces.Discrete(2),
            "place": spaces.Box(-1, 1, (2,), np.float32),
        }
    )
    space.seed(0)
    rows = np.zeros(500, FramePacking(space, ()).given)
    for name in space:
        rows[name] = [space[name].sample() for _ in range(500)]
    visits = CountBonus(space)
    visits.fit(rows)
    for name, other in {"image": 255 - rows["image"], "key": 1 - rows["key"], "place": rows["place"] + 2}.items():
        changed = rows.copy()
        changed[name] = other
        assert (visits.bucket_ids(rows) != visits.bucket_ids(changed)).mean() > 0.99


def growing_world(num_steps: int, buffer_size: int = 20_000) -> SequenceReplayBuffer:
    """The n-th observation is about n, in both directions: each doubling leaves the region known so far."""
    space, rng = spaces.Box(-np.inf, np.inf, (1,)), np.random.default_rng(0)
    buffer = SequenceReplayBuffer(buffer_size, space, spaces.Discrete(2), "cpu", reward_bonus=CountBonus)
    walk(buffer, rng, num_steps)
    return buffer


def walk(buffer: SequenceReplayBuffer, rng: np.random.Generator, num_steps: int) -> None:
    for _ in range(num_steps):
        step = int(buffer.index.num_written[0])
        now, then = rng.normal(size=(2, 1, 1)) * (step + 1)
        buffer.add(now, then, np.zeros(1), np.zeros(1), np.array([step % 50 == 49]), [{}])
        if step % 100 == 99:
            buffer.sample(8, unroll_steps=2, n_steps=3, bonus_coef=1.0)


@pytest.mark.parametrize("buffer_size", [20_000, 1_500])
def test_cells_grow_with_the_world(buffer_size):
    buffer = growing_world(6_000, buffer_size)
    counts = np.sort(buffer.bonus.bonus.counts)[::-1]
    assert counts.sum() == (6_000 if buffer_size > 6_000 else 3_500), "stored at the last fit, and new since"
    assert (counts > 0).sum() < 25, "the cells of the first steps would be hundreds"


def test_a_saved_bonus_is_fitted_again_when_it_would_have_been():
    buffer, loaded = growing_world(1_100), growing_world(0)
    loaded.load_state(deepcopy(buffer.state()))
    for continued in (buffer, loaded):
        np.random.seed(0)
        walk(continued, np.random.default_rng(1), 700)
    one, other = buffer.bonus.state(), loaded.bonus.state()
    np.testing.assert_array_equal(one.pop("bucket_ids"), other.pop("bucket_ids"))
    np.testing.assert_equal(one, other)
