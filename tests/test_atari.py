"""Atari behind SB3's wrappers: frames, clipped rewards, lost lives."""

from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_model
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

from sb3_muzero import MuZero

ale_py = pytest.importorskip("ale_py", reason="ale-py is not installed")


def atari(game, n_envs=1, **kwargs):
    env_kwargs = dict(frameskip=1, repeat_action_probability=0.0, **kwargs)
    return VecFrameStack(make_atari_env(f"ALE/{game}-v5", n_envs, seed=0, env_kwargs=env_kwargs), 4)


class Ends(BaseCallback):
    """How each episode ended: lives left, and whether the emulator stopped it."""

    def __init__(self):
        super().__init__()
        self.lives, self.truncated, self.dones = [], [], []

    def _on_step(self):
        info = self.locals["infos"][0]
        self.lives.append(info["lives"])
        self.truncated.append(info["TimeLimit.truncated"])
        self.dones.append(self.locals["dones"][0])
        return True


def test_a_lost_life_is_a_termination_and_the_end_of_time_is_not():
    # 400 frames of the emulator: 100 steps or fewer, with at most 30 frames before the first
    model, seen = (
        tiny_model(atari("Breakout", max_num_frames_per_episode=400), policy="CnnPolicy", learning_starts=10_000),
        Ends(),
    )
    model.learn(400, callback=seen)
    buffer, dones = model.replay_buffer, np.array(seen.dones)
    np.testing.assert_array_equal(buffer.observations.ends[:400, 0], dones)
    np.testing.assert_array_equal(buffer.terminals[:400, 0], dones & ~np.array(seen.truncated))
    lost = dones & (np.array(seen.lives) > 0) & ~np.array(seen.truncated)
    assert lost.any() and np.array(seen.truncated).any()
    assert set(np.unique(buffer.rewards[:400])) <= {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("policy", ["CnnPolicy", "ResNetPolicy"])
def test_pong_is_trained_saved_and_trained_on(tmp_path, policy):
    def env():
        return atari("Pong", n_envs=2)

    model = tiny_model(env(), policy=policy, novelty_coef=0.1, reanalyze_ratio=1.0).learn(40)
    assert model.replay_buffer.observations.frames.shape[2:] == (1, 84, 84), "one frame of each stack"
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    again = MuZero.load(tmp_path / "model", env=env())
    again.load_replay_buffer(tmp_path / "buffer")
    updates = again._n_updates
    again.learn(40, reset_num_timesteps=False)
    assert again.num_timesteps == 80 and again._n_updates > updates and again.replay_buffer.size() == 40


def resident_megabytes():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_two_thousand_updates_on_pong_from_one_checkpoint_to_the_next_in_bounded_memory(tmp_path):
    """A buffer of 2000 steps is full after a quarter of them; nothing may grow from there on."""
    settings = dict(
        train_freq=1, learning_starts=200, buffer_size=2_000, reanalyze_ratio=1.0, num_simulations=16, batch_size=8
    )
    model = tiny_model(atari("Pong", n_envs=4), policy="CnnPolicy", **settings)
    checkpoint = CheckpointCallback(500, tmp_path, save_replay_buffer=True)
    megabytes = [0.0]
    while model._n_updates < 2_000:
        model.learn(2_000, callback=checkpoint, reset_num_timesteps=False)
        megabytes.append(resident_megabytes())
        steps, updates = model.num_timesteps, model._n_updates
        model = MuZero.load(tmp_path / f"rl_model_{steps}_steps", env=atari("Pong", n_envs=4))
        model.load_replay_buffer(tmp_path / f"rl_model_replay_buffer_{steps}_steps")
        assert model.num_timesteps == steps and model._n_updates >= updates - 1 > 0
    print(f"{model._n_updates} updates, megabytes {megabytes[1:]}")
    assert megabytes[-1] < megabytes[1] + 100
