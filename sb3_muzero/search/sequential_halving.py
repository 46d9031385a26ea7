"""Sequential Halving as a precomputed table of the visit count that the root selects at each simulation."""

from functools import lru_cache
from math import ceil, log2

import numpy as np


def considered_visits_sequence(num_considered: int, num_simulations: int) -> list[int]:
    """
    The visit count that the root's next action must have at each simulation.

    Selecting the best action among those with exactly this many visits is Sequential Halving (Karnin et al., 2013) over
    ``num_considered`` actions, Algorithm 1 of Gumbel MuZero (Danihelka et al., 2022).

    :param num_considered: number of considered actions.
    :param num_simulations: number of simulations.
    :return: one visit count per simulation.
    """
    if num_considered <= 1:
        return list(range(num_simulations))
    num_phases = ceil(log2(num_considered))
    sequence: list[int] = []
    visits = [0] * num_considered
    remaining = num_considered
    while len(sequence) < num_simulations:
        for _ in range(max(1, num_simulations // (num_phases * remaining))):
            sequence += visits[:remaining]
            visits[:remaining] = [count + 1 for count in visits[:remaining]]
        remaining = max(2, remaining // 2)
    return sequence[:num_simulations]


@lru_cache(maxsize=64)
def considered_visits_table(max_num_considered: int, num_simulations: int) -> np.ndarray:
    """
    The sequences for all numbers of considered actions, which action masks make different for each root.

    :param max_num_considered: the largest number of considered actions.
    :param num_simulations: number of simulations.
    :return: row ``m`` is the sequence for ``m`` actions. Shape ``[max_num_considered + 1, N]``, int32, read-only.
    """
    table = np.array([considered_visits_sequence(m, num_simulations) for m in range(max_num_considered + 1)], np.int32)
    table.flags.writeable = False
    return table
