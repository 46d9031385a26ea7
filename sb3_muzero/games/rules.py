"""
The rules of the games, compiled. A position is a board as the player to move sees it: 1 where a stone is the mover's own, -1
where it is the opponent's, 0 elsewhere, flat, int8. So whose turn it is does not matter.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sb3_muzero.common.jit import compile_cached, hash_files

SOURCES = hash_files(*sorted(Path(__file__).parent.glob("*.py")))

GOES_ON, WON, DRAWN = range(3)
"""What a move leads to; ``WON`` is a win of the player who moved."""


class Rules(NamedTuple):
    """
    A game in which players put down a stone in turn.

    :param num_rows: of the board, the top one first.
    :param num_columns: of the board.
    :param in_a_row: stones in a line that win; 0 if a chain of neighbours from one side to the other one wins (Hex).
    :param has_gravity: whether an action is a column, in which the stone falls (Connect Four); a cell otherwise.
    """

    num_rows: int
    num_columns: int
    in_a_row: int
    has_gravity: bool

    @property
    def num_cells(self) -> int:
        return self.num_rows * self.num_columns

    @property
    def num_actions(self) -> int:
        return self.num_columns if self.has_gravity else self.num_cells


def kernel(function: Any) -> Any:
    """
    :param function: one of compiled functions that may allocate.
    :return: it, compiled and cached on disk.
    """
    return compile_cached(function, SOURCES, {"nogil": True, "error_model": "numpy"})


@kernel
def landing(rules: Rules, board: np.ndarray, action: int) -> int:
    """:return: the cell where an action's stone comes to lie, -1 if it is illegal"""
    if not rules.has_gravity:
        return action if board[action] == 0 else -1
    cell = (rules.num_rows - 1) * rules.num_columns + action
    while cell >= 0 and board[cell] != 0:
        cell -= rules.num_columns
    return cell if cell >= 0 else -1


@kernel
def completes_line(rules: Rules, board: np.ndarray, cell: int) -> bool:
    """:return: whether the mover's stone on a cell is one of enough in a line"""
    row, column = cell // rules.num_columns, cell % rules.num_columns
    for direction in range(4):
        down, right = (0, 1, 1, 1)[direction], (1, 0, 1, -1)[direction]
        length = 1
        for sign in (-1, 1):
            y, x = row + sign * down, column + sign * right
            while 0 <= y < rules.num_rows and 0 <= x < rules.num_columns and board[y * rules.num_columns + x] == 1:
                length += 1
                y, x = y + sign * down, x + sign * right
        if length >= rules.in_a_row:
            return True
    return False


@kernel
def completes_chain(rules: Rules, board: np.ndarray, cell: int) -> bool:
    """:return: whether the mover's stone on a cell of a Hex board connects the top to the bottom"""
    height, width = rules.num_rows, rules.num_columns
    seen = np.zeros(board.size, np.bool_)
    waiting = np.empty(board.size, np.int64)
    seen[cell], waiting[0], num_waiting = True, cell, 1
    top = bottom = False
    while num_waiting > 0:
        num_waiting -= 1
        row, column = waiting[num_waiting] // width, waiting[num_waiting] % width
        top, bottom = top or row == 0, bottom or row == height - 1
        for neighbour in range(6):
            y = row + (-1, -1, 0, 0, 1, 1)[neighbour]
            x = column + (0, 1, -1, 1, -1, 0)[neighbour]
            if 0 <= y < height and 0 <= x < width and board[y * width + x] == 1 and not seen[y * width + x]:
                seen[y * width + x], waiting[num_waiting] = True, y * width + x
                num_waiting += 1
    return top and bottom


@kernel
def play(rules: Rules, board: np.ndarray, action: int) -> int:
    """
    Make a legal move, after which the board is as the other player sees it; in Hex that is along the other diagonal, so that
    everybody connects top and bottom.

    :param rules: of the game.
    :param board: position, changed in place. Shape ``[cells]``.
    :param action: the move.
    :return: ``GOES_ON``, ``WON`` or ``DRAWN``.
    """
    cell = landing(rules, board, action)
    board[cell] = 1
    has_won = completes_chain(rules, board, cell) if rules.in_a_row == 0 else completes_line(rules, board, cell)
    is_full = True
    for other in range(board.size):
        is_full = is_full and board[other] != 0
        board[other] = -board[other]
    if rules.in_a_row == 0:
        for row in range(rules.num_rows):
            for column in range(row):
                a, b = row * rules.num_columns + column, column * rules.num_columns + row
                board[a], board[b] = board[b], board[a]
    return WON if has_won else (DRAWN if is_full else GOES_ON)


@kernel
def observe(rules: Rules, board: np.ndarray, planes: np.ndarray, legal: np.ndarray) -> None:
    """
    :param rules: of the game.
    :param board: position. Shape ``[cells]``.
    :param planes: receives 255 where the mover's and where the opponent's stones are. Shape ``[2 * cells]``, uint8.
    :param legal: receives which moves are legal. Shape ``[num_actions]``, bool.
    """
    for cell in range(board.size):
        planes[cell] = 255 if board[cell] == 1 else 0
        planes[board.size + cell] = 255 if board[cell] == -1 else 0
    for action in range(legal.size):
        legal[action] = landing(rules, board, action) >= 0


@kernel
def play_all(rules: Rules, boards: np.ndarray, actions: np.ndarray, outcomes: np.ndarray) -> None:
    """
    ``play`` on each board that is not over already, where ``outcomes`` receives what the move led to.

    :param boards: positions, changed in place. Shape ``[B, cells]``.
    :param actions: moves; an illegal one leaves the board as it is, and ``outcomes`` too. Shape ``[B]``, int64.
    :param outcomes: as of before, in place. Shape ``[B]``, int64.
    """
    for i in range(len(boards)):
        if outcomes[i] == GOES_ON and landing(rules, boards[i], actions[i]) >= 0:
            outcomes[i] = play(rules, boards[i], actions[i])


@kernel
def observe_all(rules: Rules, boards: np.ndarray, planes: np.ndarray, legal: np.ndarray) -> None:
    """
    :param boards: positions. Shape ``[B, cells]``.
    :param planes: receives their observations. Shape ``[B, 2 * cells]``, uint8.
    :param legal: receives which moves are legal. Shape ``[B, num_actions]``, bool.
    """
    for i in range(len(boards)):
        observe(rules, boards[i], planes[i], legal[i])
