"""Random actions, as long as there is nothing to plan for."""

from typing import Any

import numpy as np

from sb3_muzero.actions import DiscreteActions
from sb3_muzero.common.serialization import validate_number


class WarmUp:
    """Whether the environment has shown a reward signal: a reward that differs from the first one, or a terminal state."""

    def __init__(self) -> None:
        self.first_reward: float | None = None
        self.reward_signal_seen = False

    def update(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """
        :param rewards: Of one step of all environments, before any normalization, shape ``[n_envs]``
        :param dones: Whether episodes ended, shape ``[n_envs]``
        :param infos: ``TimeLimit.truncated`` tells a truncation from a termination
        """
        if self.reward_signal_seen:
            return
        truncated = [info.get("TimeLimit.truncated", False) for info in infos]
        self.update_from(rewards, np.asarray(dones, bool) & ~np.array(truncated, bool))

    def update_from(self, rewards: np.ndarray, terminals: np.ndarray) -> None:
        """
        :param rewards: Of stored steps, any shape
        :param terminals: Whether a step led to a terminal state, same shape
        """
        if len(rewards) == 0:
            return
        rewards = np.asarray(rewards, np.float32)  # as they are stored
        if self.first_reward is None:
            self.first_reward = float(rewards.flat[0])
        self.reward_signal_seen |= bool(np.any(terminals) or (rewards != self.first_reward).any())

    def state(self) -> dict[str, Any]:
        """:return: What a resumed run goes on with"""
        return {"first_reward": self.first_reward, "reward_signal_seen": self.reward_signal_seen}

    def load_state(self, state: dict[str, Any]) -> None:
        """:param state: What ``state`` returned"""
        first = state["first_reward"]
        self.first_reward = None if first is None else validate_number("first_reward", first, float)
        self.reward_signal_seen = validate_number("reward_signal_seen", state["reward_signal_seen"], bool)


def repeated_random_actions(
    actions: DiscreteActions, last: np.ndarray | None, n_envs: int, repeat: float, action_masks: np.ndarray | None
) -> np.ndarray:
    """
    Random actions that are repeated for a while (temporally extended exploration, https://arxiv.org/abs/2006.01782).

    :param actions: The action space
    :param last: Actions of the step before, shape ``[n_envs, *action_shape]``, if there are any
    :param n_envs: Number of environments
    :param repeat: Steps between new actions, on average
    :param action_masks: True for legal actions, shape ``[n_envs, num_actions]``, or ``None`` if all are
    :return: Actions, each that of the step before or a new one, shape ``[n_envs, *action_shape]``
    """
    drawn = actions.sample(n_envs, action_masks)
    if last is None or len(last) != n_envs:
        last = drawn
    renewed = np.random.rand(n_envs) < 1 / repeat
    if action_masks is not None:
        renewed |= ~actions.is_legal(last, action_masks)
    return np.where(renewed.reshape(-1, *[1] * len(actions.shape)), drawn, last)
