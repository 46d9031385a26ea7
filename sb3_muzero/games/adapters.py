"""Games of PettingZoo (https://pettingzoo.farama.org/api/aec) and OpenSpiel as two-player environments."""

from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_muzero.common.extras import missing_extra
from sb3_muzero.games.board_games import Moves


class AdaptedGame(gym.Env):
    """
    A game of another library. At each move it is checked that the game is what MuZero expects: rewards sum to zero, and
    players move in turn unless it has ``extra_turns``. When it is made, it is tried with random moves.

    :param observation_space: Observation space of the player to move
    :param num_actions: Number of moves, legal or not
    :param extra_turns: Whether a player may move twice in a row; ``None`` if random moves are to tell
    """

    two_player = True
    NUM_RANDOM_MOVES = 200

    def __init__(self, observation_space: spaces.Space, num_actions: int, extra_turns: bool | None) -> None:
        self.observation_space = observation_space
        self.action_space = self.moves = Moves(num_actions)
        self.extra_turns = extra_turns is not False
        self._player = 0
        self._legal = np.zeros(num_actions, np.bool_)
        if extra_turns is None:
            self.extra_turns = self._find_extra_turn()

    @property
    def to_play(self) -> int:
        """Whose turn it is, 0 or 1, in a game with extra turns."""
        if not self.extra_turns:
            raise AttributeError("Players move in turn")
        return self._player

    def _find_extra_turn(self) -> bool:
        """:return: Whether a player is to move twice in a row after random moves; the game is at its start again"""
        rng, found, is_over = np.random.default_rng(0), False, True
        for _ in range(self.NUM_RANDOM_MOVES):
            if is_over:
                self.reset()
            player = self._player
            _, _, terminated, truncated, _ = self.step(rng.choice(np.flatnonzero(self._legal)))
            is_over = terminated or truncated
            found |= self._player == player
        self.reset()
        return found

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.moves.legal = self._legal

    def observation(self) -> np.ndarray:
        """:return: What the player to move sees"""
        raise NotImplementedError

    def _look_for_moves(self) -> np.ndarray:
        raise NotImplementedError

    def _mover(self) -> int:
        """:return: Whose turn it is, 0 or 1"""
        raise NotImplementedError

    def _begin(self) -> tuple[np.ndarray, dict[str, Any]]:
        """:return: What ``reset`` returns"""
        self._player = self._mover()
        self._legal = self.moves.legal = self._look_for_moves()
        return self.observation(), {}

    def _move(self, action: int) -> tuple[list[float], bool, bool]:
        """:return: rewards of both, the mover's first, and whether the game was terminated or truncated"""
        raise NotImplementedError

    def action_masks(self) -> np.ndarray:
        """:return: True for legal moves, shape ``[num_actions]``"""
        return self._legal

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: A legal move
        :return: Observation of the player to move, reward of the mover, terminated, truncated, an empty dictionary
        :raises ValueError: for an illegal move, and if rewards do not sum to zero, or players do not move in turn
        """
        if not self.action_space.contains(action) or not self.action_masks()[action]:
            raise ValueError(
                f"`action` must be a legal move, one of {np.flatnonzero(self.action_masks()).tolist()}, got {action}"
            )
        rewards, terminated, truncated = self._move(int(action))
        if len(rewards) != 2 or abs(sum(rewards)) > 1e-6:
            raise ValueError(f"Two players' rewards must sum to zero, got {rewards}")
        is_over = terminated or truncated
        before, self._player = self._player, 1 - self._player if is_over else self._mover()
        if self._player == before and not self.extra_turns:
            raise ValueError(f"Players did not move in turn, player {before} was to move twice: set `extra_turns=True`")
        self._legal = self.moves.legal = np.zeros(self.moves.n, np.bool_) if is_over else self._look_for_moves()
        return self.observation(), float(rewards[0]), terminated, truncated, {}


class PettingZooGame(AdaptedGame):
    """
    A classic game of PettingZoo, as ``"connect_four_v3"``.

    :param aec_env: Name of a classic game of PettingZoo, or such an environment, e.g. ``connect_four_v3.env()``, whose
        observations are dictionaries of ``observation`` and ``action_mask``
    :param extra_turns: Whether a player may move twice in a row; by default random moves tell
    :raises ValueError: if it has not two agents with the same spaces, or no masks
    :raises ImportError: for a name where PettingZoo, or what the game needs, is not installed
    """

    def __init__(self, aec_env: Any, extra_turns: bool | None = None) -> None:
        if isinstance(aec_env, str):
            try:
                aec_env = import_module(f"pettingzoo.classic.{aec_env}").env()
            except ImportError as error:
                if error.name == f"pettingzoo.classic.{aec_env}":
                    raise ValueError(f"`aec_env` must be the name of a classic game of PettingZoo, got {aec_env!r}") from error
                raise missing_extra("games", error) from error
        agents = aec_env.possible_agents
        if len(agents) != 2:
            raise ValueError(f"`aec_env` must be a game for two, got the agents {agents}")
        first, second = (aec_env.observation_space(agent) for agent in agents)
        if not isinstance(first, spaces.Dict) or not {"observation", "action_mask"} <= set(first):
            raise ValueError(f"`aec_env` must say which moves are legal, by an `action_mask` in its observations, got {first}")
        if first != second or aec_env.action_space(agents[0]).n != aec_env.action_space(agents[1]).n:
            raise ValueError(f"`aec_env` must have the same spaces for both players, got {first} and {second}")
        self.aec_env = aec_env
        self._reset_kwargs: dict[str, Any] | None = None
        self._played: list[int] = []
        super().__init__(first["observation"], int(aec_env.action_space(agents[0]).n), extra_turns)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._reset_kwargs is not None:  # PettingZoo does not copy a game's whole state: replay it
            self.aec_env.reset(**self._reset_kwargs)
            for action in self._played:
                self.aec_env.step(action)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        seed = int(self.np_random.integers(2**31)) if seed is None else seed  # for the replay
        self._reset_kwargs, self._played = {"seed": seed, "options": options}, []
        self.aec_env.reset(**self._reset_kwargs)
        return self._begin()

    def observation(self) -> np.ndarray:
        return self.aec_env.observe(self.aec_env.agent_selection)["observation"]

    def _look_for_moves(self) -> np.ndarray:
        return self.aec_env.observe(self.aec_env.agent_selection)["action_mask"].astype(np.bool_)

    def _mover(self) -> int:
        return self.aec_env.possible_agents.index(self.aec_env.agent_selection)

    def _move(self, action: int) -> tuple[list[float], bool, bool]:
        env, mover = self.aec_env, self.aec_env.agent_selection
        env.step(action)
        self._played.append(action)
        rewards = [env.rewards[mover], *(reward for agent, reward in env.rewards.items() if agent != mover)]
        return rewards, all(env.terminations.values()), any(env.truncations.values())


class OpenSpielGame(AdaptedGame):
    """
    A game of OpenSpiel. Its observations do not say whose turn it is: another plane (or entry) is 0 for the player who
    begins, 1 for the other one.

    :param game: Name of a game of OpenSpiel, as ``"connect_four"`` or ``"hex(board_size=5)"``, or what ``pyspiel.load_game``
        makes of it
    :param extra_turns: Whether a player may move twice in a row; by default random moves tell
    :raises ValueError: if it is not one of two players, one move at a time, zero sum, no chance and perfect information
    :raises ImportError: for a name where OpenSpiel is not installed
    """

    def __init__(self, game: Any, extra_turns: bool | None = None) -> None:
        if isinstance(game, str):
            try:
                game = import_module("pyspiel").load_game(game)
            except ImportError as error:
                raise missing_extra("games", error) from error
        if not hasattr(game, "get_type"):
            raise ValueError(f'`game` must be a game of OpenSpiel or its name, as "connect_four", got {game!r}')
        kind = game.get_type()
        traits = {
            "players": (2, game.num_players()),
            "dynamics": ("SEQUENTIAL", kind.dynamics.name),
            "chance": ("DETERMINISTIC", kind.chance_mode.name),
            "information": ("PERFECT_INFORMATION", kind.information.name),
            "utility": ("ZERO_SUM", kind.utility.name),
            "observation tensor": (True, kind.provides_observation_tensor),
        }
        needed = {name: trait for name, (trait, found) in traits.items() if trait != found}
        if needed:
            wrong = {name: traits[name][1] for name in needed}
            raise ValueError(f"`game` must have {needed}, but {kind.short_name} has {wrong}")
        shape = tuple(game.observation_tensor_shape())
        self.game = game
        self.state = game.new_initial_state()
        self._first = self.state.current_player()
        space = spaces.Box(-np.inf, np.inf, (shape[0] + 1, *shape[1:]), np.float32)
        super().__init__(space, game.num_distinct_actions(), extra_turns)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.game.new_initial_state()
        return self._begin()

    def observation(self) -> np.ndarray:
        tensor = np.array(self.state.observation_tensor(self._player), np.float32)
        shape, is_second = self.observation_space.shape, self._player != self._first
        return np.append(tensor, np.full(np.prod(shape[1:], dtype=int), is_second, np.float32)).reshape(shape)  # type: ignore

    def _look_for_moves(self) -> np.ndarray:
        return np.array(self.state.legal_actions_mask(), np.bool_)

    def _mover(self) -> int:
        return self.state.current_player()

    def _move(self, action: int) -> tuple[list[float], bool, bool]:
        self.state.apply_action(action)
        rewards = self.state.rewards()
        return [rewards[self._player], rewards[1 - self._player]], self.state.is_terminal(), False


from_pettingzoo = PettingZooGame
from_open_spiel = OpenSpielGame
