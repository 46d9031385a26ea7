"""Action masks that environments return, such as ``info["action_mask"]``, in sb3-contrib's convention."""

from typing import Any

import gymnasium as gym


class ReturnedActionMasker(gym.Wrapper):
    """
    sb3-contrib's ``ActionMasker`` for masks that ``reset`` and ``step`` return, in their info or as a part of a Dict
    observation: it keeps the latest one for ``action_masks()``.

    :param env: The Gym environment to wrap
    :param key: Name of the mask in the info or the observation
    """

    def __init__(self, env: gym.Env, key: str = "action_mask") -> None:
        super().__init__(env)
        self.key = key
        self._returned: dict[str, Any] = {}

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(**kwargs)
        self._keep(observation, info)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self._keep(observation, info)
        return observation, reward, terminated, truncated, info

    def _keep(self, observation: Any, info: dict[str, Any]) -> None:
        self._returned = observation if isinstance(observation, dict) and self.key not in info else info

    def action_masks(self) -> Any:
        """
        :return: The mask that ``reset`` or ``step`` has returned last, shape ``[num_actions]``
        :raises ValueError: if it has returned none
        """
        if self.key not in self._returned:
            raise ValueError(f"The environment returned no {self.key!r}, neither in the info nor in a Dict observation")
        return self._returned[self.key]
