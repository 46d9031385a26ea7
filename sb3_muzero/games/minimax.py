"""Minimax of a given depth, compiled, and its evaluation of positions."""

from typing import NamedTuple

import numpy as np

from sb3_muzero.games.alpha_beta import define_game, negamax
from sb3_muzero.games.rules import GOES_ON, WON, Rules, kernel, landing, play

WIN = 10**9
"""Score of a won position, to which the remaining depth is added: faster wins are better."""
LOWEST = -10 * WIN
MANY = 2**62


def move_order(rules: Rules) -> np.ndarray:
    """
    :param rules: of the game.
    :return: all moves, central ones first, which makes alpha-beta prune more. Shape ``[num_actions]``, int64.
    """
    rows, columns = np.divmod(np.arange(rules.num_actions), rules.num_columns)
    away_from_middle = np.abs(columns - (rules.num_columns - 1) / 2)
    if not rules.has_gravity:
        away_from_middle += np.abs(rows - (rules.num_rows - 1) / 2)
    return np.argsort(away_from_middle, kind="stable")


@kernel
def evaluate_lines(rules: Rules, board: np.ndarray) -> int:
    """:return: sum over open lines, 4 to the power of the stones in them, of the mover minus that of the opponent"""
    height, width, length = rules.num_rows, rules.num_columns, rules.in_a_row
    score = 0
    for direction in range(4):
        down, right = (0, 1, 1, 1)[direction], (1, 0, 1, -1)[direction]
        for row in range(height - down * (length - 1)):
            first, end = (length - 1, width) if right < 0 else (0, width - right * (length - 1))
            for column in range(first, end):
                own = other = 0
                for i in range(length):
                    stone = board[(row + i * down) * width + column + i * right]
                    own += stone == 1
                    other += stone == -1
                if other == 0 and own > 0:
                    score += 4 ** min(own - 1, 10)
                elif own == 0 and other > 0:
                    score -= 4 ** min(other - 1, 10)
    return score


@kernel
def stones_to_connect(rules: Rules, board: np.ndarray, own: int, down: int) -> int:
    """:return: how many more stones ``own`` needs for a chain, from top to bottom (``down`` 1) or from left to right (0)"""
    size = rules.num_rows
    far = 2 * board.size
    distance = np.full(board.size, far, np.int64)
    for start in range(size):
        cell = start if down == 1 else start * size
        distance[cell] = 1 if board[cell] == 0 else (0 if board[cell] == own else far)
    changed = True
    while changed:
        changed = False
        for cell in range(board.size):
            cost = 1 if board[cell] == 0 else (0 if board[cell] == own else far)
            for neighbour in range(6):
                y = cell // size + (-1, -1, 0, 0, 1, 1)[neighbour]
                x = cell % size + (0, 1, -1, 1, -1, 0)[neighbour]
                if 0 <= y < size and 0 <= x < size and distance[y * size + x] + cost < distance[cell]:
                    distance[cell] = distance[y * size + x] + cost
                    changed = True
    nearest = far
    for end in range(size):
        nearest = min(nearest, distance[(size - 1) * size + end if down == 1 else end * size + size - 1])
    return nearest


@kernel
def evaluate(rules: Rules, board: np.ndarray) -> int:
    """:return: heuristic value of a position for the mover"""
    if rules.in_a_row == 0:
        return 16 * (stones_to_connect(rules, board, -1, 0) - stones_to_connect(rules, board, 1, 1))
    return evaluate_lines(rules, board)


class DepthLimited(NamedTuple):
    """
    A game that is searched for some plies, after which positions are evaluated.

    :param rules: of the game.
    :param outcomes: what the move to each ply's position led to. Shape ``[depth]``, int64.
    """

    rules: Rules
    outcomes: np.ndarray


def _bounds(game: DepthLimited, positions: np.ndarray, ply: int) -> tuple[int, int]:
    left = len(positions) - 1 - ply
    if game.outcomes[ply] == WON:  # by the opponent
        return -(WIN + left + 1), -(WIN + left + 1)
    if game.outcomes[ply] != GOES_ON:
        return 0, 0
    if left == 0:
        score = evaluate(game.rules, positions[ply])
        return score, score
    return LOWEST, WIN + left


def _make_move(game: DepthLimited, positions: np.ndarray, ply: int, action: int) -> bool:
    if landing(game.rules, positions[ply], action) < 0:
        return False
    positions[ply + 1] = positions[ply]
    game.outcomes[ply + 1] = play(game.rules, positions[ply + 1], action)
    return True


def _store(game: DepthLimited, positions: np.ndarray, ply: int, value: int, alpha: int) -> None:
    pass


define_game(DepthLimited, bounds=_bounds, make_move=_make_move, store=_store)


@kernel
def minimax_scores(rules: Rules, board: np.ndarray, depth: int, order: np.ndarray) -> np.ndarray:
    """
    :param rules: of the game.
    :param board: position that is not over. Shape ``[cells]``.
    :param depth: plies to look ahead, at least 1.
    :param order: all moves, the most promising ones first.
    :return: scores of moves: exact for the best ones, upper bounds below the best for others, ``LOWEST`` for illegal ones.
        Shape ``[num_actions]``, int64.
    """
    scores = np.full(order.size, LOWEST, np.int64)
    boards, outcomes = np.empty((depth, board.size), np.int8), np.empty(depth, np.int64)
    best = LOWEST + 1
    for action in order:
        if landing(rules, board, action) < 0:
            continue
        boards[0] = board
        outcomes[0] = play(rules, boards[0], action)
        game = DepthLimited(rules, outcomes)
        scores[action] = -negamax(game, boards, LOWEST, -(best - 1), order, MANY)
        best = max(best, scores[action])
    return scores
