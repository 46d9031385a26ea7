"""Visit counts: the same place counts up, other places do not."""

import numpy as np
import pytest
from gymnasium import spaces

from sb3_muzero.exploration.count_bonus import CountBonus


@pytest.mark.parametrize(
    "space", [spaces.Discrete(500), spaces.MultiDiscrete([9, 9, 2]), spaces.Box(0, 255, (4, 4, 3), np.uint8)]
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
