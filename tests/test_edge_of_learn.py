"""Nothing is lost where ``learn`` ends, however it does: what follows is what one call would have done."""

import itertools
import re
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import TinyEnv, differences, snapshot, tiny_envs, tiny_model
from gymnasium import spaces
from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_muzero import MuZero
from sb3_muzero.callbacks import ResumableCheckpointCallback
from sb3_muzero.checkpointing import resume


class Goal(gym.Env):
    """A corridor whose right end, two steps away, pays the only reward. Episodes are truncated after 10 steps."""

    observation_space = spaces.Box(0, 1, (6,), np.float32)
    action_space = spaces.Discrete(3)

    def _observation(self) -> np.ndarray:
        return np.eye(6, dtype=np.float32)[self.place]

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.place, self.steps = 2, 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        self.place = int(np.clip(self.place + action - 1, 0, 4))
        return self._observation(), float(self.place == 4), self.place == 4, self.steps == 10, {}


def stopped_once(kind: str) -> Callable[[], BaseCallback]:
    """:return: Makes a callback that ends training in one of many ways, some steps after it began"""

    class Stop(BaseCallback):
        def _on_training_start(self) -> None:
            self.deadline = time.monotonic() + 0.02

        def _on_step(self) -> bool:
            if kind == "time":
                return time.monotonic() < self.deadline
            if self.n_calls % 7 == 0 or self.locals["dones"][0]:
                if kind == "False":
                    return False
                raise {"Ctrl-C": KeyboardInterrupt, "SystemExit": SystemExit, "error": RuntimeError}[kind]
            return True

    return Stop


def learn_in_parts(model: MuZero, steps: int, make_callback: Callable[[], BaseCallback]) -> int:
    """:return: How often training was ended by the callback, before it went on without until ``steps`` were done"""
    stops = 0
    while model.num_timesteps < 0.8 * steps:
        stops += 1
        try:
            model.learn(steps - model.num_timesteps, callback=make_callback(), reset_num_timesteps=False)
        except (KeyboardInterrupt, SystemExit, RuntimeError):
            pass
    model.learn(steps - model.num_timesteps, reset_num_timesteps=False)
    return stops


def assert_equal_runs(first: MuZero, second: MuZero) -> None:
    assert first.num_timesteps == second.num_timesteps and first._n_updates == second._n_updates
    assert first._episode_num == second._episode_num
    assert differences(first.replay_buffer.state(), second.replay_buffer.state()) == []
    assert differences(snapshot(first), snapshot(second)) == []
    assert [(info["r"], info["l"]) for info in first.ep_info_buffer or ()] == [
        (info["r"], info["l"]) for info in second.ep_info_buffer or ()
    ]


def stacked() -> Any:
    return VecFrameStack(DummyVecEnv([lambda: TinyEnv(spaces.Box(0, 255, (1, 12, 12), np.uint8))] * 2), 3)


ENVS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "one": (lambda: TinyEnv(), {}),
    "each step": (lambda: TinyEnv(), {"train_freq": 1}),
    "each episode": (lambda: TinyEnv(length=6), {"train_freq": (1, "episode"), "gradient_steps": -1}),
    "every other episode": (lambda: TinyEnv(length=6), {"train_freq": (2, "episode")}),
    "three": (lambda: tiny_envs(3), {"train_freq": 3, "gradient_steps": -1}),
    "SubprocVecEnv": (lambda: SubprocVecEnv([TinyEnv] * 2, start_method="fork"), {}),
    "VecNormalize": (lambda: VecNormalize(make_vec_env("CartPole-v1", 2, seed=3)), {}),
    "frames": (stacked, {"policy": "CnnPolicy"}),
    "frames around VecNormalize": (lambda: VecFrameStack(VecNormalize(make_vec_env("CartPole-v1", 2, seed=3)), 2), {}),
    "explored and searched again": (
        lambda: tiny_envs(2),
        {"reanalyze_ratio": 0.5, "exploration_steps_per_episode": 4, "random_action_repeat": 3.0, "learning_starts": 50},
    ),
}


@pytest.mark.parametrize("kind", ["False", "Ctrl-C", "SystemExit", "error", "time"])
def test_the_last_step_is_stored_however_training_ends(kind):
    whole = tiny_model(Goal()).learn(120)
    model = tiny_model(Goal())
    assert learn_in_parts(model, 120, stopped_once(kind)) > (1 if kind == "time" else 10)
    buffer = model.replay_buffer
    assert model.num_timesteps == buffer.size() == 120
    assert buffer.rewards[:120].sum() == buffer.terminals[:120].sum() > 0
    assert_equal_runs(whole, model)


@pytest.mark.parametrize("name", ENVS)
def test_what_follows_a_stop_is_what_one_call_would_have_done(name):
    make, settings = ENVS[name]
    whole = tiny_model(make(), **settings).learn(160)
    parts = tiny_model(make(), **settings)
    assert learn_in_parts(parts, 160, stopped_once("False")) > 4
    assert_equal_runs(whole, parts)
    for model in (whole, parts):
        model.env.close()


@pytest.mark.parametrize("name", ENVS)
def test_learning_in_portions_is_learning_at_once(name):
    make, settings = ENVS[name]
    settings = {"train_freq": 1} | settings
    whole = tiny_model(make(), **settings).learn(120)
    parts = tiny_model(make(), **settings)
    while parts.num_timesteps < whole.num_timesteps:
        parts.learn(min(10, whole.num_timesteps - parts.num_timesteps), reset_num_timesteps=False)
    assert_equal_runs(whole, parts)
    for model in (whole, parts):
        model.env.close()


@pytest.mark.parametrize("settings", [{"learning_starts": 100}, {"train_freq": (1, "episode"), "gradient_steps": -1}], ids=str)
def test_a_goal_two_steps_away_is_found_one_episode_a_call(settings):
    """As in SB3's issue 2056."""
    model = MuZero("MlpPolicy", Goal(), seed=0, device="cpu", **settings)
    for _ in range(150):
        model.learn(10_000, callback=StopTrainingOnMaxEpisodes(1), reset_num_timesteps=False)
    buffer = model.replay_buffer
    assert model._episode_num == 150 and buffer.size() == model.num_timesteps
    assert buffer.rewards[: buffer.size()].sum() == buffer.terminals[: buffer.size()].sum() >= 60
    assert [info["r"] for info in model.ep_info_buffer][-10:] == [1.0] * 10


def test_stops_by_an_evaluation_keep_the_step():
    stop = StopTrainingOnRewardThreshold(reward_threshold=-1.0)  # any evaluation reaches it
    model = tiny_model(Monitor(Goal()))
    callback = EvalCallback(Monitor(Goal()), callback_on_new_best=stop, eval_freq=26, n_eval_episodes=1, verbose=0)
    model.learn(100, callback=callback)
    assert model.num_timesteps == model.replay_buffer.size() == 26


def test_the_episode_that_ends_with_training_is_logged(monkeypatch):
    model = tiny_model(TinyEnv())
    episodes = []
    monkeypatch.setattr(model, "dump_logs", lambda: episodes.append((model._episode_num, len(model.ep_info_buffer))))
    model.learn(100, callback=StopTrainingOnMaxEpisodes(2), log_interval=1)
    assert episodes == [(1, 1), (2, 2)]


def test_callbacks_see_themselves_and_the_frequency_in_the_locals():
    seen: list[dict[str, Any]] = []
    model = tiny_model(TinyEnv(), train_freq=3)
    callback: Any = StopTrainingOnMaxEpisodes(1)
    callback._on_step = lambda: seen.append(dict(callback.locals)) or len(seen) < 10
    model.learn(20, callback=callback)
    assert len(seen) == 10 and all(step["callback"] is callback for step in seen)
    assert all(step["train_freq"] == model.train_freq == (3, TrainFrequencyUnit.STEP) for step in seen)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_after_an_exception_in_an_environment_all_are_reset(n_envs):
    class Breaks(TinyEnv):
        def step(self, action: Any) -> Any:
            if self.steps == 33 and not self.broken:
                self.broken = True
                raise KeyboardInterrupt
            return super().step(action)

        broken = False

    envs = [TinyEnv() for _ in range(n_envs - 1)] + [Breaks()]
    model = tiny_model(DummyVecEnv([lambda env=env: env for env in envs]))
    with pytest.raises(KeyboardInterrupt):
        model.learn(500)
    assert model.replay_buffer.size() == 33 and model.num_timesteps == 33 * n_envs
    model.learn(40 * n_envs, reset_num_timesteps=False)
    assert [env.resets for env in envs] == [len(env.shown) for env in envs] and all(env.resets >= 5 for env in envs)
    starts = model.replay_buffer.observations.frames[33]
    np.testing.assert_array_equal(starts, np.stack([env.shown[4][0] for env in envs]))


def test_an_interrupted_search_loses_nothing(monkeypatch):
    env = TinyEnv()
    model = tiny_model(env)
    act, calls = model.collector.act, itertools.count()

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 13:
            raise KeyboardInterrupt
        return act(*args, **kwargs)

    monkeypatch.setattr(model.collector, "act", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.learn(60)
    assert model.num_timesteps == 33 and env.resets == 4
    model.learn(27, reset_num_timesteps=False)
    assert_equal_runs(tiny_model(TinyEnv()).learn(60), model)


@pytest.mark.parametrize("kind, error", [("False", ValueError), ("Ctrl-C", KeyboardInterrupt)])
def test_a_step_that_is_refused_is_not_stored_where_training_ends(kind, error):
    class Faulty(TinyEnv):
        def step(self, action: Any) -> Any:
            obs, reward, *rest = super().step(action)
            return obs, float("nan") if self.steps == 7 else reward, *rest

    model = tiny_model(Faulty())
    with pytest.raises(error) as caught:
        model.learn(100, callback=stopped_once(kind)())
    refusal = caught.value if kind == "False" else caught.value.__context__
    assert re.search(r"non-finite reward .* at step 7", str(refusal))
    assert model.replay_buffer.size() == 6
    model.learn(60, reset_num_timesteps=False)
    assert np.isfinite(model.replay_buffer.rewards[: model.replay_buffer.size()]).all()


def test_learning_anew_completes_no_rollout_of_before():
    model = tiny_model(TinyEnv(), train_freq=10, learning_starts=4)
    model.learn(100, callback=lambda locals_, _: model.num_timesteps < 6)
    assert model._n_updates == 0
    model.learn(4)
    assert (model.num_timesteps, model._n_updates) == (10, 1)


@pytest.mark.parametrize("name", ["one", "each episode", "VecNormalize"])
def test_a_stopped_run_is_resumed_amid_its_rollout(name, tmp_path):
    make, settings = ENVS[name]
    whole = tiny_model(make(), **settings).learn(160)
    stopped = tiny_model(make(), **settings)
    stop = StopTrainingOnMaxEpisodes(2)
    stopped.learn(160, callback=[ResumableCheckpointCallback(10_000, tmp_path), stop])
    resumed = resume(tmp_path, make(), restore_environments=True)
    assert resumed.num_timesteps == stopped.num_timesteps < 160 and resumed._last_obs is not None
    resumed.learn(160 - resumed.num_timesteps, reset_num_timesteps=False)
    assert_equal_runs(whole, resumed)


def test_a_saved_model_completes_its_rollout(tmp_path):
    model = tiny_model(TinyEnv(), train_freq=10, learning_starts=4)
    model.learn(100, callback=lambda locals_, _: model.num_timesteps < 6)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = MuZero.load(tmp_path / "model", env=TinyEnv(), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    loaded.learn(4, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded._n_updates) == (10, 1)
