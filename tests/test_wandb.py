"""Weights & Biases, offline: its own callback works unchanged, and ours adds the pictures."""

from unittest.mock import MagicMock

import gymnasium as gym
import numpy as np
import pytest
import wandb
from conftest import TinyEnv, tiny_envs, tiny_model
from PIL import Image
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from wandb.integration.sb3 import WandbCallback

from sb3_muzero import MuZero
from sb3_muzero.analysis.recording import record_frames, save_gif
from sb3_muzero.callbacks import MuZeroWandbCallback


class FilmedEnv(TinyEnv):
    """Shows how many steps were taken as a shade of grey."""

    render_mode = "rgb_array"

    def render(self):
        return np.full((4, 6, 3), len(self.taken[-1]), np.uint8)


@pytest.mark.slow
def test_an_offline_run_holds_it_all(tmp_path):
    model = tiny_model(VecMonitor(tiny_envs(2)), tensorboard_log=str(tmp_path / "tb"), num_simulations=6)
    run = wandb.init(mode="offline", dir=tmp_path, project="test", sync_tensorboard=True)
    callbacks = [
        MuZeroWandbCallback(DummyVecEnv([FilmedEnv]), log_freq=30, batch_size=16),
        WandbCallback(gradient_save_freq=10, model_save_path=str(tmp_path / "model")),
    ]
    model.learn(200, callback=callbacks, log_interval=4)
    config = dict(run.config)
    run.finish()
    assert config["num_simulations"] == 6 and config["learning_rate"] == 1e-3
    assert config["algo"] == "MuZero"
    assert "consistency_coef" in config and "policy_kwargs" in config
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    (log,) = folder.glob("*.wandb")
    written = log.read_bytes()
    for scalar in ("train/policy_loss", "diagnostics/policy_kl", "model_error/value_0", "rollout/ep_rew_mean", "gradients/"):
        assert scalar.encode() in written, scalar
    media = folder / "files" / "media"
    for name in ("model_errors", "value_calibration", "latents", "search_tree", "policies"):
        pictures = list(media.glob(f"images/pictures/{name}_*.png"))
        assert len(pictures) >= 2, name
        assert min(Image.open(pictures[0]).size) > 200
    (episode, *_) = media.glob("videos/pictures/episode_*.gif")
    assert Image.open(episode).n_frames == 10
    assert isinstance(MuZero.load(folder / "files" / "model.zip"), MuZero)


def test_a_film_is_played_with_masks(monkeypatch):
    class MaskedEnv(FilmedEnv):
        def action_masks(self):
            return np.array([False, self.steps % 2 == 0, True])

    env = DummyVecEnv([MaskedEnv])
    record_frames(tiny_model(env), env, 10)
    assert 0 not in env.envs[0].taken[0] and env.envs[0].taken[0][1::2] == [2] * 5


def test_a_film_is_normalised_as_training_is(monkeypatch):
    env, video_env = VecNormalize(tiny_envs(1)), VecNormalize(DummyVecEnv([FilmedEnv]))
    run = MagicMock(dir=".")
    monkeypatch.setattr(wandb, "run", run)
    monkeypatch.setattr(wandb, "Video", MagicMock())
    monkeypatch.setattr("sb3_muzero.analysis.wandb_callback.save_gif", lambda frames, path: None)
    tiny_model(env).learn(80, callback=MuZeroWandbCallback(video_env, log_freq=30, batch_size=16))
    statistics = video_env.obs_rms.mean.copy()
    assert np.abs(statistics).max() > 1e-3 and run.log.call_count >= 2
    record_frames(tiny_model(env), video_env, 5)
    np.testing.assert_array_equal(video_env.obs_rms.mean, statistics)
    for training, filmed, word in ((env, DummyVecEnv([FilmedEnv]), ""), (tiny_envs(1), video_env, "not ")):
        with pytest.raises(ValueError, match=f"`video_env` must {word}be normalised, like the training environment"):
            tiny_model(training).learn(1, callback=MuZeroWandbCallback(filmed))


def test_a_film_is_one_episode(tmp_path):
    env = DummyVecEnv([lambda: FilmedEnv(length=7)])
    model = tiny_model(env)
    frames = record_frames(model, env, 50)
    assert [int(frame[0, 0, 0]) for frame in frames] == list(range(7))  # not the reset that follows
    assert len(record_frames(model, env, 3)) == 4
    save_gif(frames, tmp_path / "episode.gif")
    assert Image.open(tmp_path / "episode.gif").n_frames == 7


def test_what_can_not_be_filmed_is_said_before_training(monkeypatch):
    class NoScreenEnv(FilmedEnv):
        def render(self):
            raise gym.error.DependencyNotInstalled("pygame is not installed")

    monkeypatch.setattr(wandb, "run", MagicMock(dir="."))
    model = tiny_model(tiny_envs(1))
    with pytest.raises(gym.error.DependencyNotInstalled, match="pygame"):
        model.learn(80, callback=MuZeroWandbCallback(DummyVecEnv([NoScreenEnv])))
    assert model.num_timesteps == 0

    class MaskedEnv(FilmedEnv):
        def action_masks(self):
            return np.array([True, True, True])

    masked = tiny_model(DummyVecEnv([MaskedEnv]))
    with pytest.raises(ValueError, match="trained with action masks, but the environment has no"):
        masked.learn(80, callback=MuZeroWandbCallback(DummyVecEnv([FilmedEnv])))
    assert masked.num_timesteps == 0


def test_bad_input():
    with pytest.raises(ValueError, match="`video_env` must have the render mode 'rgb_array', got None"):
        MuZeroWandbCallback(make_vec_env("CartPole-v1", 1, env_kwargs={"render_mode": None}))
    with pytest.raises(ValueError, match="`video_length` must be an integer of at least 1, got 0"):
        MuZeroWandbCallback(video_length=0)
    assert wandb.run is None
    with pytest.raises(ValueError, match=r"call `wandb\.init\(\)` before training"):
        tiny_model(gym.make("CartPole-v1")).learn(1, callback=MuZeroWandbCallback())
