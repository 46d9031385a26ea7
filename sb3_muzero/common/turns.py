"""Whose turn it is in two-player environments."""

import warnings
from functools import cached_property
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_muzero.common.numeric import is_integer
from sb3_muzero.common.vec_env_checks import ask_environments, is_two_player

SIMILAR_NAMES = ("current_player", "player_to_move", "agent_selection", "to_move", "player", "turn")
"""Attributes that may say whose turn it is, too."""


def has_to_play(env: VecEnv) -> bool:
    """
    :param env: Vectorized environment
    :return: Whether it is a two-player game that says by ``to_play`` whose turn it is
    """
    return is_two_player(env) and ask_environments(env, "to_play")[0] is not None


class Turns:
    """
    Reads whose turn it is. Without ``to_play`` players are taken to move in turn; where an attribute of a similar name shows
    in the first steps that they do not, that is an error.

    :param env: The environments
    :param are_predicted: Whether the model predicts who moves next
    """

    MIN_STEPS, MAX_STEPS = 20, 1_000
    """Steps after which attributes of similar names are believed, and are no longer read."""

    def __init__(self, env: VecEnv, are_predicted: bool) -> None:
        self.env = env
        self.are_predicted = are_predicted
        self._steps = 0
        self._players: set[Any] = set()
        self._extra_turn = False

    @cached_property
    def name(self) -> str | None:
        """The attribute that is read, if any; found after a reset, which some environments need to have it."""
        if has_to_play(self.env) != self.are_predicted:
            raise ValueError(
                "The model was created for environments that say by `to_play` whose turn it is, which these do not"
                if self.are_predicted
                else "The environment has `to_play`, but had not when the model was created: set it in `__init__`, before the "
                "first `reset`, or create the model anew"
            )
        if not is_two_player(self.env) and is_integer(ask_environments(self.env, "to_play")[0]):
            warnings.warn("`env` has `to_play`, but not `two_player = True`: it is learned as a task of one player")
        names = ("to_play", *SIMILAR_NAMES) if is_two_player(self.env) else ()
        return next((name for name in names if ask_environments(self.env, name)[0] is not None), None)

    def to_play(self) -> np.ndarray | None:
        """
        :return: Who is to move, 0 or 1, shape ``[n_envs]``; ``None`` if nobody says so
        :raises ValueError: for anything else than 0 or 1, and for environments that do not fit the model
        """
        if self.name is None:
            return None
        if not self.are_predicted:
            return np.array([str(self.env.get_attr(self.name, 0)[0])])  # of the first environment, in whatever notation
        players = self.env.get_attr(self.name)
        for env, player in enumerate(players):
            if not is_integer(player) or player not in (0, 1):
                raise ValueError(
                    f"`to_play` must be 0 or 1, an attribute or a property but no method, got {player!r} in environment {env}"
                )
        return np.array(players)

    def signs(self, before: np.ndarray | None, dones: np.ndarray) -> np.ndarray | None:
        """
        :param before: Who was to move before the step that was just taken
        :param dones: Whether it ended an episode, shape ``[n_envs]``
        :return: 1 where the same player is to move again, -1 where the other one is, 0 where the episode ended, shape
            ``[n_envs]``, int8; ``None`` where players move in turn
        :raises ValueError: if players do not move in turn, but nobody says whose turn it is
        """
        if before is None or (after := self.to_play()) is None:
            return None
        if self.are_predicted:
            return np.where(dones, 0, np.where(before == after, 1, -1)).astype(np.int8)
        self._steps += 1
        self._players |= {*before, *after}
        self._extra_turn |= bool(before[0] == after[0]) and not dones[0]
        # More than two values count something else than players
        if self._steps >= self.MIN_STEPS and self._extra_turn and len(self._players) == 2:
            raise ValueError(
                f"Players of a two-player environment without `to_play` must move in turn, but its `{self.name}` was the same "
                f"in two steps: add an attribute `to_play`, 0 or 1 (or rename `{self.name}` if it means something else)"
            )
        if self._steps >= self.MAX_STEPS:
            self.name = None
        return None
