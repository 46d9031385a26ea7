"""Known problems whose optimum search and learning find together."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import TinyEnv
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule

from sb3_muzero import MuZero

SETTINGS: dict[str, Any] = {
    "learning_starts": 100, "train_freq": 1, "unroll_steps": 2, "n_steps": 1, "reanalyze_ratio": 0.5, "ent_coef": 0.01,
    "learning_rate": LinearSchedule(3e-3, 3e-4, 1.0), "search_kwargs": {"value_scale": 1.0}, "seed": 100, "device": "cpu",
}  # fmt: skip


class OneStep(gym.Env):
    """Episodes of one step. Nothing is seen."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), self.reward(action), True, False, {}


class Quadratic(OneStep):
    """The reward falls with the squared distance from an action somewhere in an asymmetric box."""

    def __init__(self, dim: int) -> None:
        self.action_space = spaces.Box(-3.0, 1.0, (dim,), np.float32)
        self.best = np.random.default_rng(dim).uniform(-2, 0.5, dim)

    def reward(self, action: np.ndarray) -> float:
        return -float(((action - self.best) ** 2).sum())


@pytest.mark.parametrize(
    ("dim", "steps"),
    [(1, 600), pytest.param(2, 1_200, marks=pytest.mark.slow), pytest.param(6, 3_000, marks=pytest.mark.slow)],
)
def test_the_optimum_of_a_quadratic_reward(dim, steps):
    env = Quadratic(dim)
    of_random_actions = np.mean([env.reward(env.action_space.sample()) for _ in range(100)])
    model = MuZero("MlpPolicy", env, **SETTINGS).learn(steps)
    action, _ = model.predict(np.zeros(1, np.float32), deterministic=True)
    assert env.reward(action) > 1e-2 * of_random_actions


class Agreement(OneStep):
    """The third component pays, times how much the first two agree: none of them is of any use alone."""

    action_space = spaces.MultiDiscrete([6, 6, 6], start=[0, 3, 1])

    def reward(self, action: np.ndarray) -> float:
        first, second, third = action - self.action_space.start
        return float(first == second) * float(third) / 5


def test_a_composite_action_whose_components_interact():
    model = MuZero("MlpPolicy", Agreement(), **SETTINGS).learn(1_000)
    action, _ = model.predict(np.zeros(1, np.float32), deterministic=True)
    assert Agreement().reward(action) == 1


class Corners(gym.Env):
    """A walk on a grid by steps in two directions at once, to the corner that the observation names."""

    SIZE = 5
    observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def __init__(self, action_space: spaces.Space) -> None:
        self.action_space = action_space

    def _show(self) -> np.ndarray:
        return np.concatenate([self.at, self.goal]).astype(np.float32) / 2 - 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = self.np_random.integers(1, self.SIZE - 1, 2)
        self.goal = (self.SIZE - 1) * self.np_random.integers(0, 2, 2)
        self.steps = 0
        return self._show(), {}

    def step(self, action):
        move = np.asarray(action if np.ndim(action) else divmod(int(action), 3)) - 1
        self.at, self.steps = np.clip(self.at + move, 0, self.SIZE - 1), self.steps + 1
        arrived = bool((self.at == self.goal).all())
        return self._show(), float(arrived) - 0.1, arrived, self.steps >= 20, {}


def steps_to_learn(action_space: spaces.Space, seed: int, **kwargs: Any) -> int:
    """:return: Steps after which the last 40 episodes took hardly more steps than needed"""
    settings = dict(learning_starts=200, train_freq=2, n_steps=5, ent_coef=0.03, device="cpu", seed=seed)
    model = MuZero("MlpPolicy", Corners(action_space), **(settings | kwargs))
    while model.num_timesteps < 4_000:
        model.learn(100, reset_num_timesteps=False)
        lengths = [info["l"] for info in model.ep_info_buffer or ()][-40:]
        if len(lengths) == 40 and np.mean(lengths) < 4.0:
            return model.num_timesteps
    return 10_000


@pytest.mark.slow
def test_the_same_task_as_discrete_and_as_composite_action():
    """What is learned in so many steps is not learned in many more, all joint actions being candidates or some of them."""
    seeds = range(100, 104)
    discrete = np.median([steps_to_learn(spaces.Discrete(9), seed) for seed in seeds])
    for num_candidates in (9, 8):
        kwargs = dict(policy_kwargs=dict(action_kwargs=dict(num_candidates=num_candidates)))
        composite = np.median([steps_to_learn(spaces.MultiDiscrete([3, 3]), seed, **kwargs) for seed in seeds])
        assert composite <= 1.2 * discrete, (num_candidates, composite, discrete)


class Copy(TinyEnv):
    """The reward falls with the distance of the action from what is shown."""

    def step(self, action):
        shown = self.shown[-1][-1]
        obs, _, _, ends, info = super().step(action)
        return obs, -float(np.abs(action - shown).sum()), False, ends, info


def test_default_settings_learn_to_copy_a_number():
    number = spaces.Box(-1.0, 1.0, (1,), np.float32)
    model = MuZero("MlpPolicy", Copy(number, number, terminates=False), learning_starts=100, seed=100, device="cpu").learn(
        1_500
    )
    observations = np.linspace(-0.9, 0.9, 7, dtype=np.float32)[:, None]
    actions, _ = model.predict(observations, deterministic=True)
    assert np.abs(actions - observations).mean() < 0.25
