"""Runs that would not do what their users expect are warned of, once, with a remedy that works."""

import re
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import TinyEnv, tiny_envs, tiny_model
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_muzero import MuZero
from sb3_muzero.common import run_warnings
from sb3_muzero.common.time_limits import MAX_EPISODE_STEPS, time_limit_kwargs
from sb3_muzero.games import TicTacToeEnv


def warned(action: Any, words: str) -> list[str]:
    """:return: The warnings with these words"""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(warning.message) for warning in caught if re.search(words, str(warning.message))]


class TwoPlayer(TinyEnv):
    two_player = True

    def action_masks(self) -> np.ndarray:
        return np.ones(3, bool)


@pytest.fixture(autouse=True)
def _registered() -> Any:
    gym.register("Tiny-v0", TinyEnv)
    gym.register("TinyWithLimit-v0", TinyEnv, max_episode_steps=20)
    gym.register("TinyTwoPlayer-v0", TwoPlayer)
    yield
    for name in ("Tiny-v0", "TinyWithLimit-v0", "TinyTwoPlayer-v0"):
        gym.registry.pop(name)


# Endless episodes


@pytest.mark.parametrize("env", ["CliffWalking-v1", "Tiny-v0"])
def test_a_registered_task_without_time_limit_is_warned_of_at_construction(env):
    words = rf"`env` {env} has no time limit.*TimeLimit\(env, max_episode_steps"
    assert len(warned(lambda: MuZero("MlpPolicy", env), words)) == 1
    assert len(warned(lambda: MuZero("MlpPolicy", make_vec_env(env, 3)), words)) == 1
    limited = TimeLimit(gym.make(env), max_episode_steps=5)
    assert warned(lambda: MuZero("MlpPolicy", limited), "time limit") == []
    model = tiny_model(limited, gradient_steps=0).learn(24)  # following the advice, episodes end
    assert model._episode_num >= 4 and len(evaluate_policy(model, model.get_env(), 2)) == 2
    assert warned(lambda: MuZero("MlpPolicy", make_vec_env(env, env_kwargs={"max_episode_steps": 5})), "time limit") == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: "TinyWithLimit-v0",
        lambda: "CartPole-v1",
        lambda: TinyEnv(),
        lambda: tiny_envs(2),
        lambda: gym.make("TinyTwoPlayer-v0"),
        lambda: TicTacToeEnv(),
    ],
    ids=["limit", "CartPole", "not registered", "VecEnv", "two players", "TicTacToe"],
)
def test_others_are_not_warned_of(make):
    assert warned(lambda: MuZero("MlpPolicy", make()), "time limit") == []


def test_time_limits_of_other_packages_are_known():
    wrappers = pytest.importorskip("minigrid.wrappers")
    grid = wrappers.ImgObsWrapper(gym.make("MiniGrid-Empty-5x5-v0"))
    assert warned(lambda: MuZero("MlpPolicy", grid), "time limit") == []
    gym.register_envs(pytest.importorskip("ale_py"))
    assert warned(lambda: MuZero("CnnPolicy", gym.make("ALE/Pong-v5"), buffer_size=100), "time limit") == []
    assert time_limit_kwargs("ALE/Pong-v5") == {}


def test_an_episode_that_does_not_end_is_warned_of_once(monkeypatch):
    monkeypatch.setattr(run_warnings, "MAX_EPISODE_STEPS", 30)
    envs = tiny_envs(2)
    envs.envs[1].length = 10**9
    model = tiny_model(envs)
    words = r"episode of environment 1 has not ended after 30 steps.*TimeLimit\(env"
    assert len(warned(lambda: model.learn(200), words)) == 1
    assert warned(lambda: model.learn(200, reset_num_timesteps=False), "has not ended") == []


def test_evaluations_get_a_time_limit_where_the_task_has_none():
    assert time_limit_kwargs("CliffWalking-v1") == time_limit_kwargs("Tiny-v0") == {"max_episode_steps": MAX_EPISODE_STEPS}
    assert time_limit_kwargs("CartPole-v1") == time_limit_kwargs("TinyWithLimit-v0") == time_limit_kwargs("Unknown-v0") == {}


# Next to no updates


@pytest.mark.parametrize(
    "n_envs, settings, steps, words",
    [
        (400, {}, 8_000, "`train_freq=4` counts a step of all 400 environments.*`gradient_steps=400`.*`gradient_steps=-1`"),
        (1, {"train_freq": 1_000}, 8_000, "follow 1000 environment steps.*or a smaller `train_freq`"),
        (1, {"learning_starts": 500}, 500, r"`learn\(500\)` makes hardly any updates.*`learning_starts=500`"),
        (1, {"learning_starts": 500, "train_freq": (1, "episode")}, 500, "hardly any updates"),
        (1, {"learning_starts": 500}, 510, "hardly any updates"),
        (1, {"learning_starts": 500}, 10, "`reset_num_timesteps=False`"),
    ],
    ids=str,
)
def test_fewer_than_one_update_per_100_steps_are_warned_of_once(n_envs, settings, steps, words):
    model = tiny_model(tiny_envs(n_envs, length=50), num_simulations=1, buffer_size=10_000, **settings)
    assert len(warned(lambda: model.learn(steps), words)) == 1
    assert model._n_updates < 0.01 * steps
    assert warned(lambda: model.learn(min(steps, 500)), "update") == []


@pytest.mark.parametrize(
    "n_envs, settings, steps",
    [
        (1, {}, 60),
        (8, {}, 2_000),
        (400, {"gradient_steps": -1}, 8_000),  # as the warning advises
        (400, {"gradient_steps": 400}, 8_000),
        (1, {"gradient_steps": 0}, 60),
        (1, {"train_freq": (1, "episode")}, 60),
    ],
    ids=str,
)
def test_enough_updates_are_not_warned_of(n_envs, settings, steps):
    model = tiny_model(tiny_envs(n_envs), buffer_size=10_000, **settings)

    def begin() -> None:
        model.learn(steps, callback=lambda *_: model.num_timesteps < 60)

    assert warned(begin, "updates") == []


def test_portions_of_a_longer_run_are_not_warned_of():
    model = tiny_model(tiny_envs(), learning_starts=500)
    assert warned(lambda: model.learn(10, reset_num_timesteps=False), "update") == []
