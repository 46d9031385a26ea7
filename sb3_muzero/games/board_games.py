"""Two-player board games as Gymnasium environments: each step is one ply; observation and reward are those of the mover."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_muzero.common.numeric import is_integer
from sb3_muzero.games.rules import GOES_ON, WON, Rules, landing, observe, play
from sb3_muzero.learning.symmetries import Symmetries


class Moves(spaces.Discrete):
    """The moves of a game. Without a mask, ``sample`` draws among the moves that are legal in the current position."""

    legal: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"legal": None}  # belongs to the game, not to a copy of the space

    def sample(self, mask: Any = None, probability: Any = None) -> np.int64:
        if mask is None and probability is None and self.legal is not None and self.legal.any():
            return np.int64(self.start + self.np_random.choice(np.flatnonzero(self.legal)))
        return super().sample(mask) if probability is None else super().sample(mask, probability)


def symmetries_of(rules: Rules) -> Symmetries:
    """
    :param rules: Of a game
    :return: All rotations and reflections of the board under which the game is invariant
    """
    cells = np.arange(rules.num_cells).reshape(rules.num_rows, rules.num_columns)
    if rules.has_gravity:
        images = [cells, cells[:, ::-1]]
    elif rules.in_a_row == 0:
        images = [cells, cells[::-1, ::-1]]  # a mirror image has other neighbours
    else:
        boards = [cells, cells.T] if rules.num_rows == rules.num_columns else [cells]
        images = [board[::y, ::x] for board, y, x in product(boards, (1, -1), (1, -1))]
    permutations = np.stack([image.ravel() for image in images])
    moves = permutations[:, : rules.num_columns] % rules.num_columns if rules.has_gravity else permutations
    return Symmetries(np.concatenate([permutations, permutations + rules.num_cells], axis=1), moves)


class BoardGameEnv(gym.Env):
    """
    A two-player game. An observation is an image of two planes, the mover's stones and the opponent's, 255 where there is one.
    The reward is 1 for the winning move and 0 for all others. Episodes end with a win or, on a full board, with a draw.

    :param rules: Rules of the game
    :param symmetries: Whether training augments games by rotations and reflections of the board
    :param random_plies: Upper limit of the number of random moves that begin a game, which is drawn uniformly from 0 on
    :param render_mode: "ansi" for text, "rgb_array" for a picture
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 2}  # noqa: RUF012  # gymnasium has it as an instance's
    two_player: bool = True
    SYMBOLS = ".XO"
    COLOURS = ((222, 212, 190), (40, 40, 46), (226, 226, 226))  # empty, first, second

    def __init__(self, rules: Rules, symmetries: bool = True, random_plies: int = 0, render_mode: str | None = None) -> None:
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise ValueError(f"`render_mode` must be one of {self.metadata['render_modes']}, got {render_mode!r}")
        if not all(is_integer(length) for length in rules[:3]):
            raise ValueError(f"A board's rows and columns, and stones in a row, must be integers, got {rules}")
        if min(rules.num_rows, rules.num_columns) < 2:  # SB3 would take the two planes for an image's channels, last
            raise ValueError(f"A board must have at least 2 rows and columns, got {rules.num_rows} and {rules.num_columns}")
        if not is_integer(random_plies) or not 0 <= random_plies < rules.num_cells:
            raise ValueError(f"`random_plies` must be an integer from 0 to {rules.num_cells - 1}, got {random_plies!r}")
        self.rules = rules
        self.random_plies = random_plies
        self.render_mode = render_mode
        self.symmetries = symmetries_of(rules) if symmetries else None
        shape = (2, rules.num_rows, rules.num_columns)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = self.moves = Moves(rules.num_actions)
        self._start()

    def _start(self) -> None:
        self.board = np.zeros(self.rules.num_cells, np.int8)
        self.num_plies = 0
        self.outcome = GOES_ON
        self._look()

    def _look(self) -> None:
        self._planes = np.empty(2 * self.rules.num_cells, np.uint8)
        self._legal = self.moves.legal = np.empty(self.rules.num_actions, np.bool_)
        observe(self.rules, self.board, self._planes, self._legal)

    @property
    def mover(self) -> int:
        """0 if the first player is to move, 1 if it is the second."""
        return self.num_plies % 2

    @property
    def is_over(self) -> bool:
        """Whether somebody has won, or the board is full."""
        return self.outcome != GOES_ON

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.moves.legal = self._legal

    def observation(self) -> np.ndarray:
        """:return: What the player to move sees, shape ``[2, num_rows, num_columns]``"""
        return self._planes.reshape(self.observation_space.shape)  # type: ignore[arg-type]

    def action_masks(self) -> np.ndarray:
        """:return: True for legal moves, shape ``[num_actions]``"""
        return self._legal

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """
        :param seed: Of the random moves that a game may begin with
        :param options: ``"moves"`` that are made first, in place of those
        :return: Observation of the player to move, an empty dictionary
        :raises ValueError: for an illegal move, or if they end the game
        """
        super().reset(seed=seed)
        moves = (options or {}).get("moves")
        if not isinstance(moves, Sequence | np.ndarray | None):
            raise ValueError(f"`moves` must be a sequence of moves, got {moves!r}")
        self._start()
        if moves is None and self.random_plies > 0:
            self._begin_at_random()
        for move in () if moves is None else moves:
            self.step(move)
        if self.is_over:
            raise ValueError(f"`moves` must leave something to play, got {moves}")
        return self.observation(), {}

    def _begin_at_random(self) -> None:
        """Play random moves; start again if they end the game."""
        for _ in range(int(self.np_random.integers(self.random_plies + 1))):
            self.step(self.np_random.choice(np.flatnonzero(self._legal)))
            if self.is_over:
                self._start()
                return self._begin_at_random()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: A legal move
        :return: Observation of the other player, reward of the mover, whether the game is over, False, an empty dictionary
        :raises ValueError: for an illegal move, and after the end of the game
        """
        if self.is_over:
            raise ValueError("The game is over: call `reset` first")
        if not self.action_space.contains(action) or landing(self.rules, self.board, int(action)) < 0:
            raise ValueError(
                f"`action` must be a legal move, one of {np.flatnonzero(self.action_masks()).tolist()}, got {action}"
            )
        self.outcome = play(self.rules, self.board, int(action))
        self.num_plies += 1
        self._look()
        return self.observation(), float(self.outcome == WON), self.is_over, False, {}

    def stones(self) -> np.ndarray:
        """:return: The board as it lies on the table: 0 empty, 1 first, 2 second player, shape ``[num_rows, num_columns]``"""
        board = self.board.reshape(self.rules.num_rows, self.rules.num_columns)
        if self.rules.in_a_row == 0 and self.mover == 1:
            board = board.T
        own, other = (1, 2) if self.mover == 0 else (2, 1)
        return np.where(board == 1, own, np.where(board == -1, other, 0))

    def name_of(self, action: Any) -> str:
        """
        :param action: A move of the player to move
        :return: What it is called: a column's number from 1, or a cell like b3
        """
        if self.rules.has_gravity:
            return str(int(action) + 1)
        row, column = divmod(int(action), self.rules.num_columns)
        if self.rules.in_a_row == 0 and self.mover == 1:
            row, column = column, row
        return f"{chr(ord('a') + column)}{row + 1}"

    def render(self) -> Any:
        if self.render_mode == "rgb_array":
            return self._picture()
        return self.text() if self.render_mode == "ansi" else None

    def text(self) -> str:
        """:return: The board in characters"""
        is_hex, columns = self.rules.in_a_row == 0, range(self.rules.num_columns)
        names = [str(column + 1) if self.rules.has_gravity else chr(ord("a") + column) for column in columns]
        lines = ["   " + " ".join(names)]
        for row, stones in enumerate(self.stones()):
            label = "  " if self.rules.has_gravity else f"{row + 1:2}"
            lines.append(" " * (row * is_hex) + f"{label} " + " ".join(self.SYMBOLS[stone] for stone in stones))
        return "\n".join(lines)

    def _picture(self, size: int = 32) -> np.ndarray:
        stones, is_hex = self.stones(), self.rules.in_a_row == 0
        height, width = stones.shape
        shift = size // 2 if is_hex else 0
        picture = np.full((height * size, width * size + shift * (height - 1), 3), (120, 92, 60), np.uint8)
        y, x = np.mgrid[:size, :size] - (size - 1) / 2
        disc = np.hypot(y, x) < 0.42 * size
        for row, column in product(range(height), range(width)):
            left = column * size + row * shift
            picture[row * size : (row + 1) * size, left : left + size][disc] = self.COLOURS[stones[row, column]]
        return picture


class TicTacToeEnv(BoardGameEnv):
    """
    Three in a row on a board of 3 x 3.

    :param kwargs: See ``BoardGameEnv``
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(Rules(3, 3, 3, False), **kwargs)


class ConnectFourEnv(BoardGameEnv):
    """
    Four in a row, in columns that stones fall down.

    :param num_rows: Of the board
    :param num_columns: Of the board
    :param kwargs: See ``BoardGameEnv``
    :raises ValueError: for a board without room for four
    """

    COLOURS = ((30, 60, 150), (240, 200, 40), (210, 50, 50))

    def __init__(self, num_rows: int = 6, num_columns: int = 7, **kwargs: Any) -> None:
        if max(num_rows, num_columns) < 4:
            raise ValueError(
                f"`num_rows` and `num_columns` must leave room for four in a row, got {num_rows} and {num_columns}"
            )
        super().__init__(Rules(num_rows, num_columns, 4, True), **kwargs)


class GomokuEnv(BoardGameEnv):
    """
    Five in a row, or more, on a square board.

    :param size: Rows and columns
    :param in_a_row: Stones in a line that win
    :param kwargs: See ``BoardGameEnv``
    :raises ValueError: for a board without room for a line
    """

    def __init__(self, size: int = 9, in_a_row: int = 5, **kwargs: Any) -> None:
        if not (is_integer(size) and is_integer(in_a_row) and 1 <= in_a_row <= size):
            raise ValueError(f"`in_a_row` must be an integer from 1 to `size`, an integer too, got {in_a_row!r} and {size!r}")
        super().__init__(Rules(size, size, in_a_row, False), **kwargs)


class HexEnv(BoardGameEnv):
    """
    Hex: the first player connects top and bottom, the second left and right; one of them does. Cells have six neighbours,
    above and above to the right, left and right, below and below to the left. Who is to move sees the board as if they were
    to connect top and bottom, and numbers moves so.

    :param size: Rows and columns
    :param kwargs: See ``BoardGameEnv``
    :raises ValueError: for less than two rows
    """

    def __init__(self, size: int = 7, **kwargs: Any) -> None:
        super().__init__(Rules(size, size, 0, False), **kwargs)
