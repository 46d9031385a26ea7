"""Stable-Baselines3's callbacks work as they do with its own algorithms."""

import os
import re

import gymnasium as gym
import numpy as np
import pytest
from conftest import TinyEnv, differences, snapshot, tiny_envs, tiny_model
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecNormalize
from tqdm.rich import tqdm

from sb3_muzero import MuZero
from sb3_muzero.common.progress_bar import MuZeroProgressBar


class Recorder(BaseCallback):
    """Writes down what it is told, and stops after some steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.stop_after = stop_after
        self.events: list[str] = []
        self.seen: list[dict] = []

    def _on_training_start(self) -> None:
        assert {"self", "total_timesteps", "tb_log_name"} <= self.locals.keys()
        self.events.append("training start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout start")

    def _on_step(self) -> bool:
        self.events.append("step")
        self.seen.append(dict(self.locals))
        return self.stop_after is None or self.n_calls < self.stop_after

    def _on_rollout_end(self) -> None:
        self.events.append("rollout end")

    def _on_training_end(self) -> None:
        self.events.append("training end")


def test_order_of_events():
    recorder = Recorder()
    tiny_model(tiny_envs(2), train_freq=2).learn(8, callback=recorder)
    rollout = ["rollout start", "step", "step", "rollout end"]
    assert recorder.events == ["training start", *rollout, *rollout, "training end"]


def test_locals_that_callbacks_read():
    recorder = Recorder()
    model = tiny_model(tiny_envs(2))
    model.learn(64, callback=recorder, tb_log_name="named")
    names = {"new_obs", "rewards", "dones", "infos", "actions", "env", "num_collected_steps", "replay_buffer", "self"}
    names |= {"total_timesteps", "tb_log_name", "callback", "log_interval"}
    for step in recorder.seen:
        assert names <= step.keys()
        assert step["new_obs"].shape == (2, 3) and step["rewards"].shape == step["dones"].shape == (2,)
        assert step["actions"].shape == (2,) and step["actions"].dtype.kind == "i"
        assert step["self"] is model and step["replay_buffer"] is model.replay_buffer and step["env"] is model.env
        assert step["total_timesteps"] == 64 and step["tb_log_name"] == "named"
    assert [step["num_collected_steps"] for step in recorder.seen[:5]] == [1, 2, 3, 4, 1]
    assert recorder.seen[9]["dones"].all() and "terminal_observation" in recorder.seen[9]["infos"][0]


@pytest.mark.parametrize("n_envs, stop_after", [(1, 7), (1, 30), (3, 7)])
def test_false_stops_at_once(n_envs, stop_after):
    recorder = Recorder(stop_after)
    model = tiny_model(tiny_envs(n_envs))
    model.learn(1_000, callback=recorder)
    assert model.num_timesteps == stop_after * n_envs
    assert model.replay_buffer.size() == stop_after
    assert [env.steps for env in model.env.envs] == [stop_after] * n_envs
    assert recorder.events[-2:] == ["step", "training end"]


def test_a_function_is_a_callback():
    steps = []

    def callback(locals_, globals_):
        steps.append(locals_["self"].num_timesteps)
        return len(steps) < 5

    assert tiny_model(tiny_envs()).learn(100, callback=callback).num_timesteps == 5
    assert steps == [1, 2, 3, 4, 5]


def test_lists_of_callbacks_and_lists_of_those():
    callbacks = [Recorder(), Recorder(6), Recorder()]
    model = tiny_model(tiny_envs()).learn(40, callback=[callbacks[0], CallbackList([callbacks[1], callbacks[2]])])
    assert model.num_timesteps == 6
    assert [len(callback.seen) for callback in callbacks] == [6, 6, 6]


def test_eval_callback(tmp_path):
    best = Recorder()
    evaluation = tiny_envs(2)
    callback = EvalCallback(
        evaluation,
        callback_on_new_best=best,
        eval_freq=15,
        n_eval_episodes=3,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
        warn=False,
    )
    model = tiny_model(TinyEnv()).learn(60, callback=callback)
    found = np.load(tmp_path / "evaluations.npz")
    assert found["timesteps"].tolist() == [15, 30, 45, 60]
    assert found["results"].shape == (4, 3) and (found["ep_lengths"] == 10).all()
    assert callback.best_mean_reward == found["results"].mean(axis=1).max()
    assert best.n_calls >= 1
    loaded = MuZero.load(tmp_path / "best_model", device="cpu")
    assert loaded.action_space == model.action_space and loaded.num_timesteps in (15, 30, 45, 60)
    # The training environment, in the middle of a rollout, saw nothing of it
    assert model.replay_buffer.size() == 60
    assert model.env.envs[0].unwrapped.steps == 60


def test_eval_callback_syncs_normalisation():
    training = VecNormalize(tiny_envs(2))
    evaluation = VecNormalize(tiny_envs(1), training=False, norm_reward=False)
    tiny_model(training).learn(64, callback=EvalCallback(evaluation, eval_freq=32, verbose=0, warn=False))
    np.testing.assert_array_equal(training.obs_rms.mean, evaluation.obs_rms.mean)


def test_stop_on_reward_threshold():
    stop = StopTrainingOnRewardThreshold(reward_threshold=-1.0)  # any evaluation reaches it
    callback = EvalCallback(tiny_envs(), callback_on_new_best=stop, eval_freq=25, n_eval_episodes=2, verbose=0, warn=False)
    assert tiny_model(TinyEnv()).learn(100, callback=callback).num_timesteps == 25


def test_stop_without_improvement():
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=1, min_evals=1)
    env = Monitor(gym.make("CartPole-v1", max_episode_steps=1))  # always 1
    callback = EvalCallback(env, callback_after_eval=stop, eval_freq=5, n_eval_episodes=1, verbose=0)
    assert tiny_model().learn(100, callback=callback).num_timesteps == 15  # first evaluation, then two without progress


def test_stop_on_max_episodes():
    model = tiny_model(tiny_envs(2)).learn(1_000, callback=StopTrainingOnMaxEpisodes(max_episodes=2))
    assert model.num_timesteps == 40  # two episodes of 10 steps on each of two environments


def test_every_n_timesteps():
    class Counting(BaseCallback):
        def _on_step(self) -> bool:
            counted.append(self.model.num_timesteps)
            return True

    counted: list[int] = []
    tiny_model(tiny_envs(2)).learn(56, callback=EveryNTimesteps(n_steps=12, callback=Counting()))
    assert counted == [12, 24, 36, 48]


def test_log_every_n_timesteps(monkeypatch):
    model = tiny_model(tiny_envs())
    dumped = []
    monkeypatch.setattr(model, "dump_logs", lambda: dumped.append(model.num_timesteps))
    model.learn(50, callback=LogEveryNTimesteps(n_steps=20), log_interval=None)
    assert dumped == [20, 40]


def test_checkpoint_callback_with_buffer_and_normalisation(tmp_path):
    model = tiny_model(VecNormalize(tiny_envs()))
    callback = CheckpointCallback(20, str(tmp_path), name_prefix="m", save_replay_buffer=True, save_vecnormalize=True)
    model.learn(40, callback=callback)
    expected = {f"m_{n}_steps.zip" for n in (20, 40)} | {f"m_replay_buffer_{n}_steps.pkl" for n in (20, 40)}
    assert set(os.listdir(tmp_path)) == expected | {f"m_vecnormalize_{n}_steps.pkl" for n in (20, 40)}
    env = VecNormalize.load(str(tmp_path / "m_vecnormalize_40_steps.pkl"), tiny_envs())
    loaded = MuZero.load(tmp_path / "m_40_steps", env=env, device="cpu")
    loaded.load_replay_buffer(tmp_path / "m_replay_buffer_40_steps")
    # A callback sees step 40 before it is stored, and before the training that follows
    assert (loaded.num_timesteps, loaded.replay_buffer.size()) == (40, 39)
    loaded.learn(20, reset_num_timesteps=False)
    assert (loaded.num_timesteps, loaded.replay_buffer.size()) == (60, 59)


@pytest.mark.parametrize("as_argument", [False, True])
def test_progress_bar(as_argument, capfd):
    model = tiny_model(tiny_envs())
    if as_argument:
        model.learn(24, progress_bar=True)
    else:
        model.learn(24, callback=ProgressBarCallback())
    printed = "".join(capfd.readouterr())
    assert "24/24" in printed


@pytest.mark.parametrize("callback", [None, lambda locals_, globals_: True, Recorder, [Recorder]])
def test_progress_bar_tells_the_return_and_what_takes_time(callback, monkeypatch):
    described = []
    monkeypatch.setattr(MuZeroProgressBar, "EVERY", 0.0)
    monkeypatch.setattr(tqdm, "set_description_str", lambda self, text, refresh: described.append(text))
    if callback is Recorder:
        callback = Recorder()
    elif isinstance(callback, list):
        callback = [part() for part in callback]
    tiny_model(TinyEnv(), reanalyze_ratio=1.0).learn(60, callback=callback, progress_bar=True)  # in a Monitor
    assert re.fullmatch(r"return [\d.]+, env \d+% search \d+% learn \d+%", described[-1])


@pytest.mark.parametrize("cached", [True, False])
def test_progress_bar_tells_what_takes_so_long_the_first_time(cached, monkeypatch):
    described = []
    monkeypatch.setattr(MuZeroProgressBar, "EVERY", 0.0)
    monkeypatch.setattr("sb3_muzero.search.planner.Planner.is_cached", lambda self: cached)
    monkeypatch.setattr(tqdm, "set_description_str", lambda self, text, refresh: described.append(text))
    tiny_model(TinyEnv(), learning_starts=20).learn(40, progress_bar=True)
    assert [step for step, text in enumerate(described, start=1) if "compiles" in text] == ([] if cached else [20])


def test_the_time_split_is_logged_and_adds_up(monkeypatch):
    seconds = iter(range(10**6))
    monkeypatch.setattr("sb3_muzero.muzero.time.perf_counter", lambda: float(next(seconds)))
    model = tiny_model(tiny_envs(), learning_starts=20, train_freq=1, reanalyze_ratio=1.0)
    model.learn(60, log_interval=10**9)
    # Two calls tell each part, and one the start of the environment's step
    steps, searches, updates = 60, 40, 40
    assert model.time_split["search"] == searches
    assert model.time_split["reanalysis"] == updates
    assert model.time_split["learning"] == 2 * updates
    assert model.time_split["environment"] == steps
    logged = {}
    monkeypatch.setattr(model.logger, "dump", lambda step: logged.update(model.logger.name_to_value))
    model.dump_logs()
    assert sum(logged[f"time/{part}_share"] for part in model.time_split) == pytest.approx(1.0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_model_survives_an_interruption(error, tmp_path):
    def interrupt(locals_, globals_):
        if locals_["self"].num_timesteps == 33:
            raise error
        return True

    model = tiny_model(tiny_envs())
    with pytest.raises(error):
        model.learn(100, callback=interrupt)
    model.save(tmp_path / "model")
    assert differences(snapshot(model), snapshot(MuZero.load(tmp_path / "model", device="cpu"))) == []
    updates = model._n_updates
    model.learn(20, reset_num_timesteps=False)
    # The rollout of steps 33 to 36 is completed first
    assert model.num_timesteps == 56 and model._n_updates == updates + 6
