"""
Alpha-beta search (negamax), compiled, over any representation of positions.

A game is a ``NamedTuple`` whose type ``define_game`` gives its own ``bounds``, ``make_move`` and ``store``. Positions are rows
of an array, one for each ply: boards in ``minimax.py``, bitboards in ``connect_four_solver.py``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numba.extending import overload

from sb3_muzero.games.rules import kernel

UNKNOWN = 10**12
"""A value that was not found in the given number of positions."""


def bounds(game: Any, positions: np.ndarray, ply: int) -> tuple[int, int]:
    """
    :param game: The game.
    :param positions: Positions by ply; that of ``ply`` may be completed.
    :param ply: The ply.
    :return: Lower and upper bound of the mover's value before any move is tried; both are the value if it is known.
    """
    raise NotImplementedError


def make_move(game: Any, positions: np.ndarray, ply: int, action: int) -> bool:
    """
    :param game: The game.
    :param positions: Positions by ply, of which ``ply + 1`` receives the one after the move.
    :param ply: The ply.
    :param action: The move.
    :return: Whether the move has to be searched; not if it is illegal.
    """
    raise NotImplementedError


def store(game: Any, positions: np.ndarray, ply: int, value: int, alpha: int) -> None:
    """
    :param game: The game, which may keep the value of a position whose moves have been tried.
    :param positions: Positions by ply.
    :param ply: The ply.
    :param value: An upper bound of the position's value if it is at most ``alpha``, a lower bound otherwise.
    :param alpha: Lower end of the window in which it was searched.
    """
    raise NotImplementedError


def define_game(kind: type, **functions: Callable[..., Any]) -> None:
    """
    :param kind: Type of a game.
    :param functions: Its ``bounds``, ``make_move`` and ``store``, which are compiled where they are called.
    """
    for stub in (bounds, make_move, store):
        register: Any = overload(stub, strict=False)
        register(partial(_implementation, kind, functions[stub.__name__]))


def _implementation(kind: type, function: Callable[..., Any], game: Any, *others: Any) -> Callable[..., Any] | None:
    return function if game.instance_class is kind else None


@kernel
def negamax(game: Any, positions: np.ndarray, alpha: int, beta: int, order: np.ndarray, max_positions: int) -> int:
    """
    In a loop, since numba's compiled functions that call themselves crash when they are read back from disk.

    :param game: The game.
    :param positions: The position in row 0, and a row for each further ply that may be reached.
    :param alpha: Score that the mover can have elsewhere.
    :param beta: Score that the opponent allows.
    :param order: All moves, the most promising ones first.
    :param max_positions: Positions to look at.
    :return: Score for the mover, exact between alpha and beta; ``UNKNOWN`` after too many positions.
    """
    depth = len(positions)
    alphas, betas, bests = np.empty(depth, np.int64), np.empty(depth, np.int64), np.empty(depth, np.int64)
    first_alphas, num_tried = np.empty(depth, np.int64), np.empty(depth, np.int64)
    alphas[0], betas[0] = alpha, beta
    ply, is_new = 0, True
    while True:
        is_done = False
        value = 0
        if is_new:
            is_new = False
            max_positions -= 1
            if max_positions < 0:
                return UNKNOWN
            low, high = bounds(game, positions, ply)
            if low >= betas[ply] or low == high:
                is_done, value = True, low
            elif high <= alphas[ply]:
                is_done, value = True, high
            else:
                alphas[ply], betas[ply] = max(alphas[ply], low), min(betas[ply], high)
                bests[ply], first_alphas[ply], num_tried[ply] = low, alphas[ply], 0
        elif alphas[ply] >= betas[ply] or num_tried[ply] == order.size:
            is_done, value = True, bests[ply]
            store(game, positions, ply, value, first_alphas[ply])
        if is_done:
            if ply == 0:
                return value
            ply -= 1
            bests[ply] = max(bests[ply], -value)
            alphas[ply] = max(alphas[ply], bests[ply])
        elif num_tried[ply] < order.size:
            action = order[num_tried[ply]]
            num_tried[ply] += 1
            if make_move(game, positions, ply, action):
                alphas[ply + 1], betas[ply + 1] = -betas[ply], -alphas[ply]
                ply, is_new = ply + 1, True
