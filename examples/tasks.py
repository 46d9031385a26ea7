"""
Small tasks that no package has, each of which shows one difficulty; importing this module registers them.

    python examples/compare_baselines.py --gym-packages tasks --env tasks/Bandit-v0 --steps 4000
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv

Observation = tuple[np.ndarray, dict[str, Any]]
Step = tuple[np.ndarray, float, bool, bool, dict[str, Any]]


class Bandit(gym.Env):
    """
    Contextual bandit whose next observation cannot be predicted: standard normal numbers, of which the sign of one says
    which of the two actions earns 1; the other one earns -1.

    :param size: Numbers of an observation
    :param index: The number that counts
    """

    action_space = spaces.Discrete(2)
    observation: np.ndarray

    def __init__(self, size: int = 16, index: int = 3) -> None:
        self.index = index
        self.observation_space = spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def _observe(self) -> np.ndarray:
        self.observation = self.np_random.standard_normal(self.observation_space.shape, np.float32)
        return self.observation

    def _is_right(self, action: int) -> bool:
        return (self.observation[self.index] > 0) == (action == 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Observation:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: int) -> Step:
        reward = 1.0 if self._is_right(action) else -1.0
        return self._observe(), reward, False, False, {}


class DotBandit(Bandit):
    """
    The bandit as an image: a dot in the left half says that action 0 earns 1, one in the right half that action 1 does.

    :param size: Pixels of each side
    """

    def __init__(self, size: int = 20) -> None:
        self.size = size
        self.observation_space = spaces.Box(0, 255, (1, size, size), np.uint8)

    def _observe(self) -> np.ndarray:
        self.observation = np.zeros((1, self.size, self.size), np.uint8)
        self.observation.flat[self.np_random.integers(self.observation.size)] = 255
        return self.observation

    def _is_right(self, action: int) -> bool:
        left, right = np.split(self.observation, 2, axis=-1)
        return bool((left, right)[action].any())


class NoisyCartPole(CartPoleEnv):
    """
    CartPole whose observations end in standard normal numbers without meaning.

    :param num_noise: How many
    """

    def __init__(self, num_noise: int = 50, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self.num_noise = num_noise
        self.observation_space = spaces.Box(-np.inf, np.inf, (4 + num_noise,), np.float32)

    def _with_noise(self, observation: np.ndarray) -> np.ndarray:
        return np.concatenate([observation, self.np_random.standard_normal(self.num_noise, np.float32)])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Observation:
        observation, info = super().reset(seed=seed, options=options)
        return self._with_noise(observation), info

    def step(self, action: int | np.ndarray) -> Step:
        observation, reward, terminated, truncated, info = super().step(action)
        return self._with_noise(observation), float(reward), terminated, truncated, info


class ConstantCost(gym.Env):
    """
    Corridor with the start in the middle and the goal at its right end. Every step has the same large cost, which nothing but
    the goal ends.

    :param distance: Steps to the goal
    :param cost: Of a step
    """

    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, distance: int = 5, cost: float = 1000.0) -> None:
        self.distance, self.cost = distance, cost

    def _observe(self) -> np.ndarray:
        return np.array([self.place / self.distance], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Observation:
        super().reset(seed=seed)
        self.place = 0
        return self._observe(), {}

    def step(self, action: int) -> Step:
        self.place = max(self.place + (1 if action == 1 else -1), -self.distance)
        return self._observe(), -self.cost, self.place == self.distance, False, {}


class TwoRooms(gym.Env):
    """
    Grid of two rooms of 5x7 cells with a door in the wall between them. An episode starts anywhere in the first room and ends
    with a reward of 1 in the far corner of the second one.
    """

    WIDTH, HEIGHT, WALL, DOOR, GOAL = 11, 7, 5, 3, (10, 0)
    MOVES = ((1, 0), (-1, 0), (0, 1), (0, -1))

    action_space = spaces.Discrete(len(MOVES))
    observation_space = spaces.MultiDiscrete([WIDTH, HEIGHT])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Observation:
        super().reset(seed=seed)
        self.cell = int(self.np_random.integers(self.WALL)), int(self.np_random.integers(self.HEIGHT))
        return np.array(self.cell), {}

    def step(self, action: int) -> Step:
        x, y = np.clip(np.add(self.cell, self.MOVES[action]), 0, (self.WIDTH - 1, self.HEIGHT - 1)).tolist()
        if x != self.WALL or y == self.DOOR:
            self.cell = x, y
        at_goal = self.cell == self.GOAL
        return np.array(self.cell), float(at_goal), at_goal, False, {}


class Arm(gym.Env):
    """
    Planar arm of four links, each a quarter long, that reaches for a point. An action turns each joint by one of seven angles,
    from -0.3 to 0.3 radians, 2 401 joint actions in all; a step costs the distance between tip and target.

    Components interact: the joint action that brings the tip closest at each step earns -1.4 in the mean of 100 episodes,
    while the turns that do so for each joint alone overshoot together and earn -14. Random actions earn -37, and random
    shooting in the arm itself, the best of 100 sequences of 4 actions at each step, -4.9.
    """

    NUM_JOINTS, LENGTH, REACH = 4, 0.25, 0.9
    TURNS = np.linspace(-0.3, 0.3, 7)

    action_space = spaces.MultiDiscrete([TURNS.size] * NUM_JOINTS)
    observation_space = spaces.Box(-2.0, 2.0, (2 * NUM_JOINTS + 4,), np.float32)

    def tip(self, angles: np.ndarray) -> np.ndarray:
        """
        :param angles: Angles of the joints, each relative to the link before, shape ``[..., 4]``
        :return: Where the arm ends, shape ``[..., 2]``
        """
        directions = np.cumsum(angles, axis=-1)
        return self.LENGTH * np.stack((np.cos(directions).sum(-1), np.sin(directions).sum(-1)), axis=-1)

    def _observe(self) -> np.ndarray:
        tip = self.tip(self.angles)
        parts = np.cos(self.angles), np.sin(self.angles), self.target, self.target - tip
        return np.concatenate(parts).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Observation:
        super().reset(seed=seed)
        self.angles = self.np_random.uniform(-np.pi, np.pi, self.NUM_JOINTS)
        radius, direction = self.REACH * np.sqrt(self.np_random.random()), self.np_random.uniform(-np.pi, np.pi)
        self.target = radius * np.array([np.cos(direction), np.sin(direction)])
        return self._observe(), {}

    def step(self, action: np.ndarray) -> Step:
        self.angles = self.angles + self.TURNS[action]
        distance = float(np.linalg.norm(self.target - self.tip(self.angles)))
        return self._observe(), -distance, False, False, {}


# Entry point, time limit, and the mean return that counts as solved
TASKS: dict[str, tuple[str, int, float]] = {
    "tasks/Bandit-v0": ("tasks:Bandit", 50, 45.0),
    "tasks/DotBandit-v0": ("tasks:DotBandit", 20, 19.0),
    "tasks/NoisyCartPole-v0": ("tasks:NoisyCartPole", 500, 475.0),
    # Returns that nothing but reaching the goal within the limit gives
    "tasks/ConstantCost-v0": ("tasks:ConstantCost", 100, -99_000.0),
    "tasks/CliffWalking-v0": ("gymnasium.envs.toy_text.cliffwalking:CliffWalkingEnv", 200, -199.0),
    "tasks/TwoRooms-v0": ("tasks:TwoRooms", 100, 0.95),
    "tasks/Arm-v0": ("tasks:Arm", 50, -5.0),
}

for env_id, (entry_point, limit, threshold) in TASKS.items():
    if env_id not in gym.registry:
        gym.register(env_id, entry_point, max_episode_steps=limit, reward_threshold=threshold)
