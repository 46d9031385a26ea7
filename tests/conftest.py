"""What the tests of the whole algorithm share: a tiny environment over any spaces, a tiny budget, and comparisons."""

import os
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import settings
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_muzero import MuZero
from sb3_muzero.replay.reading import read_sequences
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer
from sb3_muzero.replay.sequences import SequenceSamples

th.set_num_threads(1)
# The same examples each time; pytest --hypothesis-profile=fuzz, for an hour or so, looks for others
settings.register_profile("fixed", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("fuzz", max_examples=1_000_000, deadline=None, print_blob=True)
settings.load_profile("fixed")


@pytest.fixture(autouse=True, scope="session")
def _log_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """SB3 makes a folder in /tmp for every model that learns, unless this says where."""
    os.environ["SB3_LOGDIR"] = str(tmp_path_factory.mktemp("logs"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test that does not name a seed is the same test each time."""
    set_random_seed(0)


UNIT_BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)


class TinyEnv(gym.Env):
    """
    Episodes of ``length`` random observations; the reward is 1 for the first action and 0 for the others. It keeps count
    of its resets and of all that it showed: ``shown[i][t]`` is the observation of episode ``i`` at time ``t``.
    """

    def __init__(
        self,
        observation_space: spaces.Space = UNIT_BOX,
        action_space: spaces.Space | None = None,
        length: int = 10,
        terminates: bool = True,
    ) -> None:
        self.observation_space = deepcopy(observation_space)
        self.action_space = spaces.Discrete(3) if action_space is None else deepcopy(action_space)
        self.length = length
        self.terminates = terminates
        self.resets = 0
        self.steps = 0  # over all episodes
        self.shown: list[list[Any]] = []
        self.rewards: list[list[float]] = []
        self.taken: list[list[Any]] = []

    def _show(self) -> Any:
        self.shown[-1].append(self.observation_space.sample())
        return self.shown[-1][-1]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.resets += 1
        for history in (self.shown, self.rewards, self.taken):
            history.append([])
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), f"illegal action {action!r}"
        self.steps += 1
        self.taken[-1].append(action)
        self.rewards[-1].append(float(np.all(action == getattr(self.action_space, "start", 0))))
        end = len(self.taken[-1]) >= self.length
        return self._show(), self.rewards[-1][-1], end and self.terminates, end and not self.terminates, {}


def tiny_envs(n_envs: int = 1, **kwargs: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda: TinyEnv(**kwargs) for _ in range(n_envs)])


def tiny_model(env: Any = "CartPole-v1", policy: Any = "MlpPolicy", **kwargs: Any) -> MuZero:
    """:return: A model that takes a fraction of a second to train for 60 steps"""
    budget: dict[str, Any] = {
        "num_simulations": 4,
        "learning_starts": 20,
        "batch_size": 8,
        "buffer_size": 1_000,
        "seed": 0,
        "device": "cpu",
    }
    return MuZero(policy, env, **{**budget, **kwargs})


def scramble(model: Any, seed: int = 27) -> Any:
    """
    Random weights and bounds in place of those that start at zero, so that what is predicted depends on the observation.

    :param model: A MuZero or its policy, changed in place
    :param seed: Of the weights. With the default, both actions of CartPole are planned for some of its observations
    :return: The same
    """
    policy = getattr(model, "policy", model)
    generator = th.Generator().manual_seed(seed)
    with th.no_grad():
        for name, parameter in policy.latent_model.named_parameters():
            if name.endswith("weight"):
                parameter.add_(2.0 * th.randn(parameter.shape, generator=generator).to(parameter.device))
        for support in (policy.latent_model.value_support, policy.latent_model.reward_support):
            support.bounds.copy_(th.tensor([-3.0, 5.0]))
    policy.update_target()
    return model


def cartpole_observations(count: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def differences(a: Any, b: Any) -> list[str]:
    """:return: Where two nested structures of tensors, arrays and plain values differ, in any bit"""
    if isinstance(a, dict) and isinstance(b, dict):
        unshared = [f"{key} is in one only" for key in a.keys() ^ b.keys()]
        return unshared + [f"{key}.{where}" for key in a.keys() & b.keys() for where in differences(a[key], b[key])]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{len(a)} != {len(b)} items"]
        return [f"{i}.{where}" for i in range(len(a)) for where in differences(a[i], b[i])]
    if isinstance(a, th.Tensor | np.ndarray):
        return [] if a.shape == b.shape and a.dtype == b.dtype and bool((a == b).all()) else ["values"]
    return [] if a == b else [f"{a} != {b}"]


def snapshot(model: MuZero) -> dict[str, Any]:
    """:return: A copy of all that ``save`` calls parameters: both networks, their supports' bounds, the optimizer's state"""
    return deepcopy(model.get_parameters())


def sequences_of(
    buffer: SequenceReplayBuffer,
    ages: np.ndarray,
    envs: np.ndarray,
    unroll_steps: int,
    n_steps: int,
    env: VecNormalize | None = None,
    bonus_coef: float = 0.0,
) -> SequenceSamples:
    """:return: Sequences that start so many steps after the oldest one of their environments"""
    ids = buffer.index.begins[envs] + ages * buffer.n_envs
    return read_sequences(buffer, ids, unroll_steps, n_steps, env, bonus_coef=bonus_coef)
