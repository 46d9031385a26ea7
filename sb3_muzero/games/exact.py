"""Exact solutions of small games, and exhaustive tests of players."""

from collections.abc import Callable
from math import comb
from typing import NamedTuple

import numpy as np

from sb3_muzero.games.rules import GOES_ON, WON, Rules, landing, play

MAX_POSITIONS = 1_000_000


def legal_moves(rules: Rules, board: np.ndarray) -> list[int]:
    """:return: moves that are legal on a board, shape ``[cells]``, of a game that is not over"""
    return [action for action in range(rules.num_actions) if landing(rules, board, action) >= 0]


def max_num_positions(rules: Rules) -> int:
    """
    :param rules: Of a game
    :return: How many positions can occur before the board is full, if no game ended earlier
    """
    # Ways to fill some cells, by the number of cells: columns fill up from below where there is gravity
    ways = [1]
    for _ in range(rules.num_columns if rules.has_gravity else rules.num_cells):
        height = rules.num_rows if rules.has_gravity else 1
        ways = [sum(ways[max(k - height, 0) : k + 1]) for k in range(len(ways) + height)]
    return sum(count * comb(stones, stones // 2) for stones, count in enumerate(ways[:-1]))


def solve(rules: Rules) -> dict[bytes, np.ndarray]:
    """
    :param rules: Of a game on a small board
    :return: For each position that can occur and is not over, by the bytes of its board as the mover sees it, what each move
        is worth to the mover if nobody errs: 1, 0 or -1, NaN where illegal; shape ``[num_actions]``
    :raises ValueError: if there may be more than ``MAX_POSITIONS``
    """
    if (count := max_num_positions(rules)) > MAX_POSITIONS:
        raise ValueError(
            f"`rules` must be of a game of at most {MAX_POSITIONS} positions to be solved, got {rules} with up to {count:.1e}"
        )
    solution: dict[bytes, np.ndarray] = {}

    def value_of(board: np.ndarray) -> float:
        key = board.tobytes()
        if key not in solution:
            values = np.full(rules.num_actions, np.nan)
            for action in legal_moves(rules, board):
                after = board.copy()
                outcome = play(rules, after, action)
                values[action] = -value_of(after) if outcome == GOES_ON else float(outcome == WON)
            solution[key] = values
        return float(np.nanmax(solution[key]))

    value_of(np.zeros(rules.num_cells, np.int8))
    return solution


class Endings(NamedTuple):
    """
    Numbers of games by outcome, over all moves that the opponent can make.

    :param won: By the player
    :param drawn: By neither
    :param lost: By the player
    """

    won: int
    drawn: int
    lost: int


def count_leaves(act: Callable[[np.ndarray], np.ndarray], rules: Rules, moves_first: bool) -> Endings:
    """
    Play every game that can result from the moves of an opponent.

    :param act: The player: moves, shape ``[B]``, on boards as the mover sees them, shape ``[B, cells]``; always the same on
        the same board
    :param rules: Of the game
    :param moves_first: Whether the player has the first move
    :return: Number of games by outcome
    """
    counts = [0, 0, 0]
    boards, is_player = np.zeros((1, rules.num_cells), np.int8), moves_first
    while len(boards) > 0:
        if is_player:
            distinct, inverse = np.unique(boards, axis=0, return_inverse=True)
            moves = [[move] for move in act(distinct)[inverse.ravel()]]
        else:
            moves = [legal_moves(rules, board) for board in boards]
        following = []
        for board, choices in zip(boards, moves, strict=True):
            for move in choices:
                after = board.copy()
                outcome = play(rules, after, int(move))
                if outcome == GOES_ON:
                    following.append(after)
                else:
                    counts[1 if outcome != WON else (0 if is_player else 2)] += 1
        boards, is_player = np.array(following), not is_player
    return Endings(*counts)


def share_of_errors(act: Callable[[np.ndarray], np.ndarray], solution: dict[bytes, np.ndarray]) -> float:
    """
    :param act: The player, as in ``count_leaves``
    :param solution: From ``solve``
    :return: Fraction of positions in which the player's move is not optimal, or its value is unknown
    """
    boards = np.array([np.frombuffer(key, np.int8) for key in solution])
    values = np.array(list(solution.values()))
    chosen = values[np.arange(len(values)), act(boards)]
    return float((~(chosen >= np.nanmax(values, axis=1))).mean())
