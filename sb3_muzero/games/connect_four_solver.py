"""Connect Four solved by alpha-beta over bitboards with a table of positions (after Pascal Pons, http://blog.gamesolver.org)."""

from typing import NamedTuple

import numpy as np

from sb3_muzero.games.alpha_beta import UNKNOWN, define_game, negamax
from sb3_muzero.games.minimax import move_order
from sb3_muzero.games.rules import Rules, kernel

# A bitboard has a column's cells from bottom to top in num_rows + 1 bits, of which the highest one is always 0
UPPER, LOWER = 1, 2  # kinds of bounds in the table


@kernel
def has_four(stones: np.uint64, height: np.uint64) -> bool:
    """:return: whether four of the stones are in a row"""
    one = np.uint64(1)
    for shift in (one, height, height + one, height + one + one):
        pairs = stones & (stones >> shift)
        if pairs & (pairs >> (shift + shift)):
            return True
    return False


@kernel
def drops(mask: np.uint64, num_rows: int, column: int) -> np.uint64:
    """:return: the bit where a stone in that column comes to lie, 0 if it is full"""
    bottom = np.uint64(1) << np.uint64(column * (num_rows + 1))
    top = bottom << np.uint64(num_rows - 1)
    if mask & top:
        return np.uint64(0)
    return (mask + bottom) & ((top << np.uint64(1)) - bottom)


@kernel
def look(own: np.uint64, mask: np.uint64, num_rows: int, num_columns: int) -> tuple[int, np.uint64]:
    """
    :param own: the mover's stones.
    :param mask: all stones.
    :return: the value if one ply decides it, else ``UNKNOWN``; and the only move that does not lose at once, 0 if there are
        several.
    """
    height, other = np.uint64(num_rows), own ^ mask
    forced, num_moves = np.uint64(0), 0
    is_lost = False
    for column in range(num_columns):
        move = drops(mask, num_rows, column)
        if move:
            num_moves += 1
            if has_four(own | move, height):
                return 1, forced
            if has_four(other | move, height):
                is_lost = is_lost or forced != 0
                forced = move
    if is_lost:
        return -1, forced
    return (0 if num_moves == 0 else UNKNOWN), forced


class Bitboards(NamedTuple):
    """
    Connect Four on bitboards. A position is a row of the mover's stones, all stones, and the only move that does not lose at
    once, 0 if there are several.

    :param num_rows: rows.
    :param num_columns: columns.
    :param keys: keys of the transposition table. Shape ``[T]``, uint64.
    :param table: its bounds, 4 * (value + 1) + kind. Shape ``[T]``, int8.
    """

    num_rows: int
    num_columns: int
    keys: np.ndarray
    table: np.ndarray


def _bounds(game: Bitboards, positions: np.ndarray, ply: int) -> tuple[int, int]:
    own, mask = positions[ply, 0], positions[ply, 1]
    value, positions[ply, 2] = look(own, mask, game.num_rows, game.num_columns)
    if value != UNKNOWN:
        return value, value
    key = own + mask
    slot = np.int64(key % np.uint64(len(game.keys)))
    if game.keys[slot] != key or game.table[slot] == 0:
        return -1, 1
    bound = int(game.table[slot] // 4 - 1)
    return (-1, bound) if game.table[slot] % 4 == UPPER else (bound, 1)


def _make_move(game: Bitboards, positions: np.ndarray, ply: int, action: int) -> bool:
    own, mask, forced = positions[ply]
    move = drops(mask, game.num_rows, action)
    if not move or (forced != 0 and move != forced):
        return False
    positions[ply + 1, 0], positions[ply + 1, 1] = own ^ mask, mask | move
    return True


def _store(game: Bitboards, positions: np.ndarray, ply: int, value: int, alpha: int) -> None:
    key = positions[ply, 0] + positions[ply, 1]
    slot = np.int64(key % np.uint64(len(game.keys)))
    game.keys[slot], game.table[slot] = key, 4 * (value + 1) + (UPPER if value <= alpha else LOWER)


define_game(Bitboards, bounds=_bounds, make_move=_make_move, store=_store)


class ConnectFourSolver:
    """
    Computes the exact values of moves. That takes less than a tenth of a second in positions with 16 stones, mostly less than
    a second with 12, and up to a minute with 8.

    :param rules: Of a Connect Four on a board of at most 64 bits
    :param max_positions: Positions to look at for each move before giving up
    :param table_size: Positions that are remembered, in 9 bytes each
    :raises ValueError: for other games, or boards that are too large
    """

    def __init__(self, rules: Rules, max_positions: int = 20_000_000, table_size: int = 2_000_003) -> None:
        if not (rules.has_gravity and rules.in_a_row == 4 and (rules.num_rows + 1) * rules.num_columns < 64):
            raise ValueError(f"`rules` must be of Connect Four on a board of at most 63 bits, got {rules}")
        self.rules = rules
        self.max_positions = max_positions
        self._positions = np.zeros((rules.num_cells + 1, 3), np.uint64)
        self._order = move_order(rules)
        keys, table = np.zeros(table_size, np.uint64), np.zeros(table_size, np.int8)
        self._game = Bitboards(rules.num_rows, rules.num_columns, keys, table)

    def values(self, board: np.ndarray) -> np.ndarray:
        """
        :param board: Position as the mover sees it, whose game is not over, shape ``[cells]``
        :return: Value of each column for the mover under perfect play: 1, 0 or -1; NaN for full columns, and for those
            with too many positions; shape ``[num_columns]``
        """
        num_rows, num_columns = self.rules.num_rows, self.rules.num_columns
        cells = np.asarray(board).reshape(num_rows, num_columns)[::-1]
        weights = np.uint64(1) << (
            np.arange(num_columns, dtype=np.uint64) * np.uint64(num_rows + 1) + np.arange(num_rows, dtype=np.uint64)[:, None]
        )
        own, mask = weights[cells == 1].sum(dtype=np.uint64), weights[cells != 0].sum(dtype=np.uint64)
        values = np.full(num_columns, np.nan)
        for column in range(num_columns):
            move = np.uint64(drops(mask, num_rows, column))  # which a compiled function gives back as an int
            if not move:
                continue
            if has_four(own | move, np.uint64(num_rows)):
                values[column] = 1.0
                continue
            self._positions[0, :2] = own ^ mask, mask | move
            value = negamax(self._game, self._positions, -1, 1, self._order, self.max_positions)
            values[column] = np.nan if value == UNKNOWN else -value
        return values
