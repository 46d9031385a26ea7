"""Players: a model, and opponents to evaluate it against."""

from collections.abc import Sequence
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from sb3_muzero.common.numeric import is_number
from sb3_muzero.common.validation import check_integer
from sb3_muzero.games.board_games import BoardGameEnv
from sb3_muzero.games.exact import solve
from sb3_muzero.games.minimax import minimax_scores, move_order
from sb3_muzero.games.rollouts import visits_of_moves
from sb3_muzero.games.rules import Rules, observe_all
from sb3_muzero.muzero import MuZero
from sb3_muzero.policies import MuZeroPolicy


class Player(Protocol):
    """An object that chooses moves."""

    def act(self, envs: Sequence[gym.Env]) -> np.ndarray:
        """
        :param envs: Games that are not over; those of ``sb3_muzero.games`` or adapters, wrapped or not
        :return: A legal move for each, shape ``[B]``
        """
        ...


def own_game(env: gym.Env) -> Any:
    """
    :param env: A game, wrapped or not
    :return: The game itself, whose ``observation()`` is what a model is trained on
    :raises ValueError: if a wrapper changes observations, and if the game lacks ``observation()`` or ``action_masks()``
    """
    wrapper = env
    while isinstance(wrapper, gym.Wrapper):
        if isinstance(wrapper, gym.ObservationWrapper) or wrapper.observation_space != env.unwrapped.observation_space:
            raise ValueError(f"Models play on the observations of the game itself, but {type(wrapper).__name__} changes them")
        wrapper = wrapper.env
    game: Any = env.unwrapped
    for method in ("observation", "action_masks"):
        if not callable(getattr(game, method, None)):
            raise ValueError(f"{type(game).__name__} lacks the method `{method}()`, which models need in matches")
    return game


def board_game(env: gym.Env) -> BoardGameEnv:
    """
    :param env: A game, wrapped or not
    :return: The game itself
    :raises ValueError: if it is not a game of this package
    """
    game = env.unwrapped
    if not isinstance(game, BoardGameEnv):
        raise ValueError(f"This player reads the board of the games of sb3_muzero.games, got a {type(game).__name__}")
    return game


def observe_boards(rules: Rules, boards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    :param rules: Of the game
    :param boards: Positions as the mover sees them, shape ``[B, cells]``
    :return: Observations, shape ``[B, 2, num_rows, num_columns]``, and which moves are legal, shape ``[B, num_actions]``
    """
    planes = np.empty((len(boards), 2 * rules.num_cells), np.uint8)
    legal = np.empty((len(boards), rules.num_actions), np.bool_)
    observe_all(rules, np.ascontiguousarray(boards), planes, legal)
    return planes.reshape(-1, 2, rules.num_rows, rules.num_columns), legal


class ModelPlayer:
    """
    A trained model, which plans the moves of all games as one batch.

    :param model: Model or policy
    :param deterministic: Whether to play without exploration noise
    """

    def __init__(self, model: MuZero | MuZeroPolicy, deterministic: bool = True) -> None:
        self.model = model
        self.deterministic = deterministic

    def act(self, envs: Sequence[gym.Env]) -> np.ndarray:
        games = [own_game(env) for env in envs]
        seen, masks = [game.observation() for game in games], np.stack([game.action_masks() for game in games])
        observations: Any = np.stack(seen)
        if isinstance(seen[0], dict):
            observations = {key: np.stack([part[key] for part in seen]) for key in seen[0]}
        return self.model.predict(observations, deterministic=self.deterministic, action_masks=masks)[0]

    def act_on_boards(self, rules: Rules, boards: np.ndarray) -> np.ndarray:
        """
        :param rules: Of the game
        :param boards: Positions as the mover sees them, shape ``[B, cells]``
        :return: Moves, shape ``[B]``
        """
        observations, masks = observe_boards(rules, boards)
        return self.model.predict(observations, deterministic=self.deterministic, action_masks=masks)[0]


class RandomPlayer:
    """
    Draws uniformly among legal moves.

    :param seed: Seed of the draws
    """

    def __init__(self, seed: int | None = None) -> None:
        self.random = np.random.default_rng(seed)

    def act(self, envs: Sequence[gym.Env]) -> np.ndarray:
        games: list[Any] = [env.unwrapped for env in envs]
        return np.array([game.action_space.start + self.random.choice(np.flatnonzero(game.action_masks())) for game in games])


class MinimaxPlayer:
    """
    Alpha-beta search of a given depth, with open lines (in Hex: missing stones) as evaluation. Draws among the best moves.

    :param depth: Plies to look ahead
    :param seed: Seed of the draws
    :raises ValueError: for a depth that is no integer of at least 1
    """

    def __init__(self, depth: int, seed: int | None = None) -> None:
        check_integer("depth", depth)
        self.depth = depth
        self.random = np.random.default_rng(seed)

    def act(self, envs: Sequence[gym.Env]) -> np.ndarray:
        games = [board_game(env) for env in envs]
        scores = [minimax_scores(game.rules, game.board, self.depth, move_order(game.rules)) for game in games]
        return np.array([self.random.choice(np.flatnonzero(row == row.max())) for row in scores])


class MCTSPlayer:
    """
    Monte Carlo tree search (UCT) with the rules of the game and random rollouts.

    :param num_simulations: Simulations per move
    :param exploration: Factor of the confidence bound
    :param seed: Seed of the rollouts
    :raises ValueError: for arguments out of range
    """

    def __init__(self, num_simulations: int, exploration: float = 1.4, seed: int | None = None) -> None:
        check_integer("num_simulations", num_simulations)
        if not is_number(exploration) or not 0 <= exploration < np.inf:
            raise ValueError(f"`exploration` must be at least 0 and finite, got {exploration!r}")
        self.num_simulations = num_simulations
        self.exploration = exploration
        self.state = np.random.default_rng(seed).integers(1, 2**63, size=1, dtype=np.uint64)

    def act(self, envs: Sequence[gym.Env]) -> np.ndarray:
        games = [board_game(env) for env in envs]
        return np.array(
            [visits_of_moves(g.rules, g.board, self.num_simulations, self.exploration, self.state).argmax() for g in games]
        )


class PerfectPlayer:
    """
    Plays perfectly, on boards that are small enough to be solved (TicTacToe; Connect Four up to 4 x 4). Draws among the best
    moves. The first move takes seconds, in which the game is solved.

    :param seed: Seed of the draws
    """

    def __init__(self, seed: int | None = None) -> None:
        self.random = np.random.default_rng(seed)
        self._solutions: dict[Rules, dict[bytes, np.ndarray]] = {}

    def act(self, envs: Sequence[gym.Env]) -> np.ndarray:
        moves = []
        for game in map(board_game, envs):
            if game.rules not in self._solutions:
                self._solutions[game.rules] = solve(game.rules)
            values = self._solutions[game.rules][game.board.tobytes()]
            moves.append(self.random.choice(np.flatnonzero(values == np.nanmax(values))))
        return np.array(moves)
