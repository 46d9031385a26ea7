"""Random actions during the warm-up, and until the first reward signal."""

from typing import Any

import numpy as np

from sb3_muzero.actions import Actions
from sb3_muzero.common.serialization import validate_number


class WarmUp:
    """Detects the first reward signal: a reward that differs from the very first one, or a terminal state."""

    def __init__(self) -> None:
        self.first_reward: float | None = None
        self.reward_signal_seen = False

    def update(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """
        :param rewards: Unnormalized rewards of one step, shape ``[n_envs]``
        :param dones: Whether the episodes ended, shape ``[n_envs]``
        :param infos: Infos of the step, with ``TimeLimit.truncated`` for truncated episodes
        """
        if self.reward_signal_seen:
            return
        truncated = [info.get("TimeLimit.truncated", False) for info in infos]
        self.update_from(rewards, np.asarray(dones, bool) & ~np.array(truncated, bool))

    def update_from(self, rewards: np.ndarray, terminals: np.ndarray) -> None:
        """
        :param rewards: Unnormalized rewards of stored steps, any shape
        :param terminals: Whether the steps led to a terminal state, same shape
        """
        if len(rewards) == 0:
            return
        rewards = np.asarray(rewards, np.float32)  # dtype of the replay buffer
        if self.first_reward is None:
            self.first_reward = float(rewards.flat[0])
        self.reward_signal_seen |= bool(np.any(terminals) or (rewards != self.first_reward).any())

    def state(self) -> dict[str, Any]:
        """:return: State for ``load_state``"""
        return {"first_reward": self.first_reward, "reward_signal_seen": self.reward_signal_seen}

    def load_state(self, state: dict[str, Any]) -> None:
        """:param state: Result of ``state``"""
        first = state["first_reward"]
        self.first_reward = None if first is None else validate_number("first_reward", first, float)
        self.reward_signal_seen = validate_number("reward_signal_seen", state["reward_signal_seen"], bool)


def repeated_random_actions(
    actions: Actions, last: np.ndarray | None, n_envs: int, repeat: float, action_masks: np.ndarray | None
) -> np.ndarray:
    """
    Sample random actions that persist for several steps (temporally extended exploration, https://arxiv.org/abs/2006.01782).

    :param actions: Action space
    :param last: Actions of the previous step, shape ``[n_envs, *action_shape]``, ``None`` for none
    :param n_envs: Number of environments
    :param repeat: Mean number of steps until a new action is sampled
    :param action_masks: True for legal actions, shape ``[n_envs, num_actions]``. By default all actions are legal
    :return: Actions, shape ``[n_envs, *action_shape]``
    """
    drawn = actions.sample(n_envs, action_masks)
    if last is None or len(last) != n_envs:
        last = drawn
    renewed = np.random.rand(n_envs) < 1 / repeat
    if action_masks is not None:
        renewed |= ~actions.is_legal(last, action_masks)
    return np.where(renewed.reshape(-1, *[1] * len(actions.shape)), drawn, last)
