"""Connect Four solved by alpha-beta over bitboards with a table of positions (after Pascal Pons, http://blog.gamesolver.org)."""

import numpy as np

from sb3_muzero.games.rules import Rules, kernel

# A bitboard has a column's cells from bottom to top in num_rows + 1 bits, of which the highest one is always 0
UPPER, LOWER = 1, 2  # kinds of bounds in the table
UNKNOWN = 2  # a value that was not found with so many positions


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
    :return: the value, where it takes no more than a ply to see, else ``UNKNOWN``; and the only move that does not lose at
        once, 0 if there are several.
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


@kernel
def value_of(
    own: np.uint64,
    mask: np.uint64,
    num_rows: int,
    order: np.ndarray,
    keys: np.ndarray,
    bounds: np.ndarray,
    max_positions: int,
) -> int:
    """
    In a loop, since numba's compiled functions that call themselves crash when they are read back from disk.

    :param own: the mover's stones.
    :param mask: all stones.
    :param num_rows: rows.
    :param order: columns, best looking first.
    :param keys: the table. Shape ``[T]``, uint64.
    :param bounds: what it knows, 4 * (value + 1) + kind. Shape ``[T]``, int8.
    :param max_positions: positions to look at.
    :return: 1, 0 or -1 for the mover, or ``UNKNOWN``.
    """
    depth = num_rows * order.size + 2
    owns, masks, forced = np.zeros(depth, np.uint64), np.zeros(depth, np.uint64), np.zeros(depth, np.uint64)
    alphas, betas, bests = np.full(depth, -1), np.full(depth, 1), np.full(depth, -1)
    lowest, num_tried = np.full(depth, -1), np.zeros(depth, np.int64)
    ply, is_new = 0, True
    owns[0], masks[0] = own, mask
    while True:
        key = owns[ply] + masks[ply]
        slot = np.int64(key % np.uint64(len(keys)))
        value = UNKNOWN
        if is_new:
            max_positions -= 1
            if max_positions < 0:
                return UNKNOWN
            value, forced[ply] = look(owns[ply], masks[ply], num_rows, order.size)
            if value == UNKNOWN and keys[slot] == key and bounds[slot] != 0:
                bound = bounds[slot] // 4 - 1
                if bounds[slot] % 4 == UPPER:
                    betas[ply] = min(betas[ply], bound)
                else:
                    alphas[ply] = max(alphas[ply], bound)
                if alphas[ply] >= betas[ply]:
                    value = bound
            bests[ply], lowest[ply], num_tried[ply], is_new = -1, alphas[ply], 0, False
        elif alphas[ply] >= betas[ply] or num_tried[ply] == order.size:
            value = bests[ply]
            keys[slot], bounds[slot] = key, 4 * (value + 1) + (UPPER if value <= lowest[ply] else LOWER)
        if value != UNKNOWN:
            if ply == 0:
                return value
            ply -= 1
            bests[ply] = max(bests[ply], -value)
            alphas[ply] = max(alphas[ply], bests[ply])
            continue
        if num_tried[ply] == order.size:
            continue
        move = drops(masks[ply], num_rows, order[num_tried[ply]])
        num_tried[ply] += 1
        if move and (forced[ply] == 0 or move == forced[ply]):
            owns[ply + 1], masks[ply + 1] = owns[ply] ^ masks[ply], masks[ply] | move
            alphas[ply + 1], betas[ply + 1] = -betas[ply], -alphas[ply]
            ply, is_new = ply + 1, True


class ConnectFourSolver:
    """
    Says what moves are worth: the later in the game, the sooner. With 16 stones that takes less than a tenth of a second, with
    12 mostly less than a second, with 8 up to a minute.

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
        columns = np.arange(rules.num_columns)
        self._order = np.argsort(np.abs(columns - (rules.num_columns - 1) / 2), kind="stable")
        self._keys = np.zeros(table_size, np.uint64)
        self._bounds = np.zeros(table_size, np.int8)

    def values(self, board: np.ndarray) -> np.ndarray:
        """
        :param board: Position as the mover sees it, whose game is not over, shape ``[cells]``
        :return: What each column is worth to the mover if nobody errs: 1, 0 or -1; NaN for full columns and for those that
            took too long; shape ``[num_columns]``
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
            value = value_of(own ^ mask, mask | move, num_rows, self._order, self._keys, self._bounds, self.max_positions)
            values[column] = np.nan if value == UNKNOWN else -value
        return values
