"""One imagined environment, for Gymnasium."""

from typing import Any

import gymnasium as gym
import numpy as np

from sb3_muzero.common.validation import check_integer
from sb3_muzero.imagination.decoding import pictures
from sb3_muzero.imagination.world import ImaginedWorld
from sb3_muzero.models.decoder import Decoder
from sb3_muzero.muzero import MuZero


class ImaginedEnv(gym.Env[np.ndarray, Any]):
    """
    One environment that a model imagines, see ``ImaginedVecEnv``. Its episodes terminate at the horizon.

    :param model: See ``ImaginedVecEnv``
    :param observations: See ``ImaginedVecEnv``
    :param horizon: See ``ImaginedVecEnv``
    :param decoder: See ``ImaginedVecEnv``
    :param render_mode: "rgb_array" to render what is imagined, or ``None``
    :param renderer: Decodes images to render from latent states, see ``fit_renderer``. By default that is ``decoder``
    :raises ValueError: see ``ImaginedVecEnv``, and for a render mode without a decoder of images
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012

    def __init__(
        self,
        model: MuZero,
        observations: Any = None,
        horizon: int = 5,
        decoder: Decoder | None = None,
        render_mode: str | None = None,
        renderer: Decoder | None = None,
    ) -> None:
        check_integer("horizon", horizon)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f'`render_mode` must be "rgb_array" or None, got {render_mode!r}')
        self.renderer = renderer or decoder
        if render_mode is not None and (self.renderer is None or not self.renderer.is_image):
            raise ValueError(
                "`render_mode` needs a decoder of images: pass `renderer=sb3_muzero.imagination.fit_renderer(model, env)`, "
                'with an `env` that was made with `render_mode="rgb_array"`'
            )
        self.world = ImaginedWorld(model, observations, decoder)
        self.horizon = horizon
        self.render_mode = render_mode
        self.observation_space, self.action_space = self.world.observation_space, model.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.latents, self.episode_steps = self.world.start(1, self.np_random), 0
        return self.world.observe(self.latents)[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: Element of the action space
        :return: Observation, reward, whether the horizon is reached, False, and no information
        """
        step = self.world.step(self.latents, np.asarray(action)[None])
        self.latents, self.episode_steps = step.latents, self.episode_steps + 1
        is_last = self.episode_steps >= self.horizon
        rewards = step.last_rewards(self.world.model.gamma) if is_last else step.rewards
        return self.world.observe(self.latents)[0], float(rewards[0]), is_last, False, {}

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """:return: Picture of the imagined state, shape ``[height, width, 3]``, uint8; ``None`` without a render mode"""
        if self.render_mode is None or self.renderer is None:
            return None
        return pictures(self.renderer, self.latents)[0]
