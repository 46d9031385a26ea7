"""
MinAtar's games (https://arxiv.org/abs/1903.03176) in a form that SB3 accepts. Importing this module registers them with
Gymnasium; games without a time limit get one of 2500 steps, as Freeway has, so that every episode ends.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_muzero.common.extras import missing_extra

try:
    from minatar.gym import register_envs
except ImportError as error:
    raise missing_extra("comparisons", error) from error

if "MinAtar/Breakout-v1" not in gym.registry:  # minatar announces itself to the old gym only
    register_envs()
for spec in gym.registry.values():
    if spec.namespace == "MinAtar" and spec.max_episode_steps is None:
        spec.max_episode_steps = 2500


class ImageObservation(gym.ObservationWrapper):
    """
    Converts boolean planes, channels last, to a uint8 image, channels first, in which 255 is true. Rewards become floats.

    :param env: One of MinAtar's games
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        height, width, channels = env.observation_space.shape  # type: ignore[misc]
        self.observation_space = spaces.Box(0, 255, (channels, height, width), np.uint8)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, float(reward), terminated, truncated, info

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation.transpose(2, 0, 1).astype(np.uint8) * 255
