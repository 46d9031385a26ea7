"""The sum tree against numpy's cumulative sums."""

import numpy as np
import pytest

from sb3_muzero.replay.sum_tree import SumTree


@pytest.mark.parametrize("capacity", [1, 2, 3, 8, 100, 1000])
def test_finds_what_a_running_sum_finds(capacity):
    rng = np.random.default_rng(capacity)
    tree, expected = SumTree(capacity), np.zeros(capacity)
    for _ in range(20):
        indices = rng.integers(capacity, size=rng.integers(1, 2 * capacity + 1))
        priorities = rng.integers(0, 4, size=len(indices)).astype(float)
        tree.update(indices, priorities)
        expected[indices] = priorities  # numpy too lets the last one count
        np.testing.assert_array_equal(tree[np.arange(capacity)], expected)
        assert tree.total == expected.sum()
        if tree.total > 0:
            masses = rng.random(50) * tree.total
            np.testing.assert_array_equal(tree.find(masses), np.searchsorted(expected.cumsum(), masses, side="right"))


def test_nothing_without_priority_is_ever_found():
    tree = SumTree(5)
    tree.update(np.array([1, 3]), np.array([0.1, 0.2]))
    assert set(tree.find(np.array([0.0, 0.1, tree.total, tree.total * (1 + 1e-12)])).tolist()) <= {1, 3}


def test_indices_come_up_in_proportion():
    rng = np.random.default_rng(0)
    tree, priorities = SumTree(50), rng.random(50)
    tree.update(np.arange(50), priorities)
    counts = np.bincount(tree.find(rng.random(200_000) * tree.total), minlength=50)
    np.testing.assert_allclose(counts / counts.sum(), priorities / priorities.sum(), atol=2e-3)
