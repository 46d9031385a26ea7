"""Weights & Biases, offline: its own callback works unchanged, and ours adds the pictures."""

import gymnasium as gym
import numpy as np
import pytest
import wandb
from conftest import TinyEnv, tiny_envs, tiny_model
from PIL import Image
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from wandb.integration.sb3 import WandbCallback

from sb3_muzero import MuZero
from sb3_muzero.callbacks import MuZeroWandbCallback
from sb3_muzero.recording import film, save_gif


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
        WandbCallback(gradient_save_freq=10, model_save_path=str(tmp_path / "model")),
        MuZeroWandbCallback(DummyVecEnv([FilmedEnv]), log_freq=30, batch_size=16),
    ]
    model.learn(200, callback=callbacks, log_interval=4)
    config = dict(run.config)
    run.finish()
    assert config["num_simulations"] in (6, "6")
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


def test_a_film_is_one_episode(tmp_path):
    env = DummyVecEnv([lambda: FilmedEnv(length=7)])
    model = tiny_model(env)
    frames = film(model, env, 50)
    assert [int(frame[0, 0, 0]) for frame in frames] == list(range(7))  # not the reset that follows
    assert len(film(model, env, 3)) == 4
    save_gif(frames, tmp_path / "film.gif")
    assert Image.open(tmp_path / "film.gif").n_frames == 7


def test_bad_input():
    with pytest.raises(ValueError, match="`video_env` must have the render mode 'rgb_array', got None"):
        MuZeroWandbCallback(make_vec_env("CartPole-v1", 1, env_kwargs={"render_mode": None}))
    with pytest.raises(ValueError, match="`video_length` must be at least 1, got 0"):
        MuZeroWandbCallback(video_length=0)
    assert wandb.run is None
    with pytest.raises(ValueError, match=r"call `wandb\.init\(\)` before training"):
        tiny_model(gym.make("CartPole-v1")).learn(1, callback=MuZeroWandbCallback())
