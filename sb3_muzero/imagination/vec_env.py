"""Many imagined environments, as a VecEnv."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_muzero.common.pytree import tree_map
from sb3_muzero.common.validation import check_integer
from sb3_muzero.imagination.world import ImaginedWorld
from sb3_muzero.models.decoder import Decoder
from sb3_muzero.muzero import MuZero


class ImaginedVecEnv(VecEnv):
    """
    Environments that a model imagines. Episodes begin at the latent states of observations and are stepped by the dynamics
    function; rewards are the expectations of the reward head. See ``ImaginedWorld`` for what models can be imagined with.

    After ``horizon`` steps an episode ends, and its last reward is ``reward + gamma * value`` with the model's ``gamma`` and
    the value that it predicts: train with the same ``gamma``. For SB3's algorithms that end is a termination, after which they
    do not bootstrap. They would after a truncation (``TimeLimit.truncated``), and the value would count twice.

    The model is accurate for about as many steps as it was unrolled over in training (``unroll_steps``). Where episodes are
    much longer, agents learn to exploit its errors, and become worse in the real environment.

    :param model: A model, which is not changed. Steps follow its parameters if it is trained further
    :param observations: Where episodes begin: observations as ``model.predict`` takes them, shape ``[N, *obs_shape]``. By
        default those of the model's replay buffer
    :param num_envs: Number of environments
    :param horizon: Steps of an episode
    :param decoder: Decodes observations from latent states, see ``fit_decoder``. By default the observations are the latent
        states themselves, flattened
    :raises ValueError: for a model that cannot imagine environments, see ``ImaginedWorld``
    """

    def __init__(
        self,
        model: MuZero,
        observations: Any = None,
        num_envs: int = 32,
        horizon: int = 5,
        decoder: Decoder | None = None,
    ) -> None:
        check_integer("num_envs", num_envs)
        check_integer("horizon", horizon)
        self.world = ImaginedWorld(model, observations, decoder)
        self.horizon = horizon
        self.generator = np.random.default_rng()
        self.render_mode = None
        super().__init__(num_envs, self.world.observation_space, model.action_space)

    def reset(self) -> np.ndarray:
        if self._seeds[0] is not None:
            self.generator = np.random.default_rng(self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self.latents = self.world.start(self.num_envs, self.generator)
        self.episode_steps = np.zeros(self.num_envs, dtype=np.int64)
        return self.world.observe(self.latents)

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        step = self.world.step(self.latents, self.actions)
        self.latents = step.latents
        self.episode_steps += 1
        dones = self.episode_steps >= self.horizon
        rewards = np.where(dones, step.last_rewards(self.world.model.gamma), step.rewards)
        observations = self.world.observe(step.latents)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            ended = np.flatnonzero(dones)
            for env in ended.tolist():
                infos[env]["terminal_observation"] = observations[env].copy()
            begun, rows = self.world.start(len(ended), self.generator), th.as_tensor(ended, device=self.world.policy.device)
            self.latents = tree_map(lambda part, new: part.index_copy(0, rows, new), self.latents, begun)
            observations[ended] = self.world.observe(begun)
            self.episode_steps[ended] = 0
        return observations, rewards, dones, infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        return [getattr(self, method_name)(*method_args, **method_kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]
