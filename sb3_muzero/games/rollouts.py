"""Monte Carlo tree search with random rollouts and the rules of the game, compiled."""

import numpy as np

from sb3_muzero.games.rules import GOES_ON, WON, Rules, kernel, landing, play


@kernel
def random_move(rules: Rules, board: np.ndarray, state: np.ndarray) -> int:
    """:return: a legal move, drawn with xorshift64 (Marsaglia, 2003), whose state is advanced"""
    num_legal = 0
    for action in range(rules.num_columns if rules.has_gravity else board.size):
        num_legal += landing(rules, board, action) >= 0
    x = state[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    state[0] = x
    skipped = np.int64((x >> np.uint64(11)) % np.uint64(num_legal))
    action = 0
    while True:
        if landing(rules, board, action) >= 0:
            if skipped == 0:
                return action
            skipped -= 1
        action += 1


@kernel
def rollout(rules: Rules, board: np.ndarray, state: np.ndarray) -> float:
    """:return: outcome of random moves for the mover: 1, 0 or -1; the board is played on"""
    sign = 1.0
    while True:
        outcome = play(rules, board, random_move(rules, board, state))
        if outcome != GOES_ON:
            return sign if outcome == WON else 0.0
        sign = -sign


@kernel
def visits_of_moves(
    rules: Rules, board: np.ndarray, num_simulations: int, exploration: float, state: np.ndarray
) -> np.ndarray:
    """
    UCT (Kocsis and Szepesvári, 2006).

    :param rules: of the game.
    :param board: position that is not over. Shape ``[cells]``.
    :param num_simulations: simulations, each of which adds a node and ends in a rollout.
    :param exploration: factor of the confidence bound.
    :param state: of the random numbers, not zero. Shape ``[1]``, uint64.
    :return: visits of the moves. Shape ``[num_actions]``, int64.
    """
    num_actions = rules.num_columns if rules.has_gravity else board.size
    children = np.full((num_simulations + 1, num_actions), -1, np.int64)
    visits = np.zeros((num_simulations + 1, num_actions), np.int64)
    totals = np.zeros((num_simulations + 1, num_actions))
    path = np.empty((num_simulations + 1, 2), np.int64)
    position = np.empty_like(board)
    for simulation in range(num_simulations):
        position[:] = board
        node, length, outcome = 0, 0, GOES_ON
        while outcome == GOES_ON:
            log_visits = np.log(visits[node].sum() + 1.0)
            best, best_score = -1, -np.inf
            for action in range(num_actions):
                if landing(rules, position, action) < 0:
                    continue
                count = visits[node, action]
                score = np.inf
                if count > 0:
                    score = totals[node, action] / count + exploration * np.sqrt(log_visits / count)
                if best < 0 or score > best_score:
                    best, best_score = action, score
            path[length, 0], path[length, 1] = node, best
            length += 1
            outcome = play(rules, position, best)
            if children[node, best] < 0:
                children[node, best] = simulation + 1
                break
            node = children[node, best]
        # For the player who made the last move
        value = -rollout(rules, position, state) if outcome == GOES_ON else (1.0 if outcome == WON else 0.0)
        for step in range(length - 1, -1, -1):
            visits[path[step, 0], path[step, 1]] += 1
            totals[path[step, 0], path[step, 1]] += value
            value = -value
    return visits[0]
