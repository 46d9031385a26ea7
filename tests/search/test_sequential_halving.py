"""Sequential Halving: known sequences, and the visits that they give a root whose Q values all agree."""

import numpy as np
import pytest
from tabular import bandit

from sb3_muzero.search import gumbel_muzero_search
from sb3_muzero.search.sequential_halving import considered_visits_sequence, considered_visits_table

SEQUENCES = {
    (2, 4): [0, 0, 1, 1],
    (4, 8): [0, 0, 0, 0, 1, 1, 2, 2],
    (4, 16): [0] * 4 + [1] * 4 + [2, 2, 3, 3, 4, 4, 5, 5],
    (6, 16): [0] * 6 + [1, 1, 1, 2, 2, 3, 3, 4, 4, 5],
    (8, 16): [0] * 8 + [1] * 4 + [2, 2, 3, 3],
    (1, 3): [0, 1, 2],
    (0, 3): [0, 1, 2],
}

FINAL_VISITS = {
    (2, 8): [4, 4],
    (4, 8): [3, 3, 1, 1],
    (4, 16): [6, 6, 2, 2],
    (4, 50): [19, 19, 6, 6],
    (6, 16): [6, 5, 2, 1, 1, 1],
    (7, 32): [12, 12, 4, 1, 1, 1, 1],
    (8, 16): [4, 4, 2, 2, 1, 1, 1, 1],
    (9, 32): [11, 10, 3, 3, 1, 1, 1, 1, 1],
    (16, 16): [1] * 16,
    (16, 32): [4] * 4 + [2] * 4 + [1] * 8,
    (16, 50): [12, 12, 5, 5] + [2] * 4 + [1] * 8,
}


@pytest.mark.parametrize(("arguments", "sequence"), SEQUENCES.items())
def test_sequence(arguments, sequence):
    assert considered_visits_sequence(*arguments) == sequence
    assert considered_visits_table(*arguments)[arguments[0]].tolist() == sequence


@pytest.mark.parametrize(("arguments", "visits"), FINAL_VISITS.items())
@pytest.mark.parametrize("spare_actions", [0, 3])
def test_final_visits_in_rank_order(arguments, visits, spare_actions):
    num_considered, num_simulations = arguments
    num_actions = num_considered + spare_actions
    model = bandit([0.0] * num_actions, [0.0] * num_actions)
    output = gumbel_muzero_search(
        model.root(np.zeros(1, np.int64)),
        model.step,
        num_simulations,
        root_gumbel=-np.arange(num_actions, dtype=np.float32)[None],
        max_num_considered_actions=num_considered,
    )
    assert output.visit_counts[0].tolist() == visits + [0] * spare_actions
    assert output.action[0] == 0


def test_mask_leaves_each_row_its_own_number_of_candidates():
    model = bandit([0.0] * 8, [0.0] * 8)
    invalid = np.zeros((4, 8), bool)
    for row, num_valid in enumerate((8, 4, 2, 1)):
        invalid[row, num_valid:] = True
    root = model.root(np.zeros(4, np.int64))
    gumbel = np.broadcast_to(-np.arange(8), (4, 8))
    output = gumbel_muzero_search(root, model.step, 16, action_masks=~invalid, root_gumbel=gumbel)
    assert output.visit_counts.tolist() == [
        [4, 4, 2, 2, 1, 1, 1, 1],
        [6, 6, 2, 2, 0, 0, 0, 0],
        [8, 8, 0, 0, 0, 0, 0, 0],
        [16, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_a_clearly_better_action_survives_the_halving():
    rewards = [0.0] * 8
    rewards[5] = 1.0
    model = bandit([0.0] * 8, rewards)
    output = gumbel_muzero_search(model.root(np.zeros(1, np.int64)), model.step, 32, gumbel_scale=0.0, value_scale=1.0)
    assert output.action[0] == 5
    assert output.visit_counts[0, 5] == output.visit_counts[0].max()
