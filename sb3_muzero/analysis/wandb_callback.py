"""Pictures of a run, and its settings, for Weights & Biases."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import wandb
from matplotlib.figure import Figure
from PIL import Image
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization, unwrap_vec_normalize

from sb3_muzero.analysis import plotting
from sb3_muzero.analysis.diagnostics import settings_of
from sb3_muzero.analysis.diagnostics_callback import DiagnosticsCallback
from sb3_muzero.analysis.recording import plays_with_masks, record_frames, save_gif
from sb3_muzero.common.pytree import tree_map
from sb3_muzero.common.validation import check_integer


class MuZeroWandbCallback(DiagnosticsCallback):
    """
    ``DiagnosticsCallback`` that also logs settings, figures and videos to the current W&B run. Scalars are logged with
    ``wandb.init(sync_tensorboard=True)`` and the model's ``tensorboard_log``; ``wandb.integration.sb3.WandbCallback``, used
    beside it, saves the model.

    :param video_env: Environment with the render mode "rgb_array", of which an episode is recorded at each measurement. If
        the training environment is a VecNormalize, it must be one too; its statistics are synchronized as in ``EvalCallback``
    :param video_length: Maximum number of steps of a video
    :param kwargs: See ``DiagnosticsCallback``
    :raises ValueError: for an environment that does not render arrays; when training begins, without a W&B run
    """

    def __init__(self, video_env: VecEnv | None = None, video_length: int = 500, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if video_env is not None and video_env.render_mode != "rgb_array":
            raise ValueError(f"`video_env` must have the render mode 'rgb_array', got {video_env.render_mode!r}")
        check_integer("video_length", video_length)
        self.video_env = video_env
        self.video_length = video_length

    def _init_callback(self) -> None:
        super()._init_callback()
        if wandb.run is None:
            raise ValueError("MuZeroWandbCallback logs to a run of W&B: call `wandb.init()` before training")
        plain = (int, float, str)
        settings = settings_of(self.model).items()
        wandb.run.config.setdefaults({name: value if isinstance(value, plain) else str(value) for name, value in settings})
        if self.video_env is not None:
            normalized = self.model.get_vec_normalize_env() is not None
            if (unwrap_vec_normalize(self.video_env) is not None) != normalized:
                raise ValueError(
                    f"`video_env` must {'' if normalized else 'not '}be normalised, like the training environment"
                )
            self.video_env.reset()
            self.video_env.render()  # errors now and not during training

    def _on_training_start(self) -> None:
        super()._on_training_start()
        if self.video_env is not None:
            plays_with_masks(self.model, self.video_env)  # errors now and not during training

    def _measure(self) -> None:
        super()._measure()
        assert wandb.run is not None
        shown: dict[str, Any] = {
            f"pictures/{name}": wandb.Image(Image.open(io.BytesIO(plotting.to_png(figure))))
            for name, figure in self._draw().items()
        }
        if self.video_env is not None:
            if (statistics := unwrap_vec_normalize(self.video_env)) is not None:
                sync_envs_normalization(self.training_env, self.video_env)
                statistics.training = False
            path = Path(wandb.run.dir) / "episode.gif"
            save_gif(record_frames(self.model, self.video_env, self.video_length), path)
            shown["pictures/episode"] = wandb.Video(str(path), format="gif")
        wandb.run.log({**shown, "global_step": self.num_timesteps})

    def _draw(self) -> dict[str, Figure]:
        policy = self.model.policy
        figures = {"model_errors": plotting.plot_model_errors(self.timesteps, self.errors)}
        if self.episodes:
            figures["value_calibration"] = plotting.plot_value_calibration(
                *map(np.concatenate, zip(*self.episodes, strict=True))
            )
        roots = tree_map(lambda part: part[0], self.model.sample(1_000, 1).observations)
        with th.no_grad():
            latents, values = policy.represent(roots), policy.predict_values(roots).squeeze(-1)
        figures["latents"] = plotting.plot_latent_map(latents.numpy(force=True), values.numpy(force=True))
        if self.last_search is not None:
            figures["search_tree"] = plotting.plot_search_tree(self.last_search, actions=policy.actions)
            figures["policies"] = plotting.plot_policies(self.last_search, actions=policy.actions)
        return figures
