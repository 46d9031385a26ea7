"""The learned model as a simulator of many states at once."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_muzero.common.pytree import tree_leaves, tree_map
from sb3_muzero.models.decoder import Decoder
from sb3_muzero.muzero import MuZero
from sb3_muzero.policies import MuZeroPolicy
from sb3_muzero.replay.reading import read_observations


class ImaginedStep(NamedTuple):
    """
    One imagined step of B states. Rewards and values are in units of the reward that the model was trained with.

    :param latents: Next latent states
    :param rewards: Expected rewards, shape ``[B]``
    :param values: Expected values of the next states, shape ``[B]``
    """

    latents: Any
    rewards: np.ndarray
    values: np.ndarray

    def last_rewards(self, gamma: float) -> np.ndarray:
        """
        :param gamma: Discount factor
        :return: Rewards of steps after which nothing more is imagined, shape ``[B]``
        """
        return self.rewards + np.float32(gamma) * self.values


@contextlib.contextmanager
def evaluating(policy: MuZeroPolicy) -> Iterator[None]:
    """
    :param policy: Policy, which is in evaluation mode in this context
    :return: Context manager that restores the mode of the policy on exit
    """
    mode = policy.training
    policy.set_training_mode(False)
    try:
        with th.no_grad():
            yield
    finally:
        policy.set_training_mode(mode)


def flat_latents(latents: Any) -> th.Tensor:
    """
    :param latents: B latent states, a tensor or a pytree of tensors
    :return: Each as one vector, shape ``[B, D]``
    """
    return th.cat([part.flatten(1) for part in tree_leaves(latents)], dim=1)


def encode_flat(policy: MuZeroPolicy, obs_tensor: PyTorchObs) -> th.Tensor:
    """
    :param policy: Policy
    :param obs_tensor: What its ``obs_to_tensor`` returned for B observations
    :return: Their latent states, each as one vector, shape ``[B, D]``
    """
    with evaluating(policy):
        return flat_latents(policy.represent(obs_tensor))


class ImaginedWorld:
    """
    Simulates with the representation and the dynamics function of a model, which it does not change.

    :param model: A model of an environment for one player without action masks
    :param observations: Where episodes begin: observations as ``model.predict`` takes them, shape ``[N, *obs_shape]``. By
        default those of the model's replay buffer
    :param decoder: Decodes what is observed from latent states; by default that are the latent states, flattened
    :raises ValueError: for models of two players or with action masks, for no observations, and for observations outside of
        the observation space, and for a decoder of anything else than whole observations
    """

    def __init__(self, model: MuZero, observations: Any = None, decoder: Decoder | None = None) -> None:
        if model.two_player:
            raise ValueError(
                "Imagined environments need a model for one player, got one of a two-player game, where each reward is that "
                "of the player who moves: train a model in an environment that plays the opponent's moves"
            )
        if model.uses_action_masks:
            raise ValueError(
                "Imagined environments need a model without action masks, got one that was trained with them: it does not "
                "know which actions are legal in imagined states. Train it with `learn(..., use_masking=False)`, in an "
                "environment that takes all actions"
            )
        self.model = model
        self.observations = None if observations is None else self.policy.obs_to_tensor(observations)[0]
        if observations is None and (model.replay_buffer is None or model.replay_buffer.size() == 0):
            raise ValueError(
                "The model's replay buffer is empty: pass `observations` to begin with, or load the buffer with "
                "`model.load_replay_buffer(path)`"
            )
        latent_dim = flat_latents(self.start(1, np.random.default_rng(0))).shape[1]
        if decoder is not None and decoder.shape != model.observation_space.shape:
            raise ValueError(
                f"`decoder` must decode observations of {model.observation_space}, got one of arrays of shape {decoder.shape}"
            )
        self.decoder = decoder
        self.observation_space: spaces.Space = spaces.Box(-np.inf, np.inf, (latent_dim,), np.float32)
        if decoder is not None:
            self.observation_space = model.observation_space

    @property
    def policy(self) -> MuZeroPolicy:
        """The model's networks."""
        return self.model.policy

    def draw(self, count: int, generator: np.random.Generator) -> Any:
        """
        :param count: Number of observations B
        :param generator: Random number generator
        :return: Observations, shape ``[B, *obs_shape]``
        """
        if self.observations is not None:
            rows = generator.integers(len(tree_leaves(self.observations)[0]), size=count)
            return tree_map(lambda part: part[th.as_tensor(rows, device=part.device)], self.observations)
        buffer = self.model.replay_buffer
        readable = buffer.index.num_readable
        envs = generator.choice(buffer.n_envs, size=count, p=readable / readable.sum())
        ages = (generator.random(count) * readable[envs]).astype(np.int64)
        ids = buffer.index.ends[envs] - (ages + 1) * buffer.n_envs
        return read_observations(buffer, np.zeros_like(ids), ids, self.model.get_vec_normalize_env())

    def start(self, count: int, generator: np.random.Generator) -> Any:
        """
        :param count: Number of latent states B
        :param generator: Random number generator
        :return: Latent states of observations
        """
        with evaluating(self.policy):
            return self.policy.represent(self.draw(count, generator))

    def step(self, latents: Any, actions: np.ndarray) -> ImaginedStep:
        """
        :param latents: B latent states
        :param actions: Elements of the action space, shape ``[B, *space.shape]``
        :return: The next states, with rewards and values
        :raises ValueError: for actions outside of the action space
        """
        model, kinds = self.policy.latent_model, self.policy.actions
        chosen = kinds.check(kinds.from_env(np.asarray(actions)), len(tree_leaves(latents)[0]))
        with evaluating(self.policy):
            action = th.as_tensor(chosen, device=self.policy.device)
            output = model.recurrent_inference(latents, action, self.model.discount)
        rewards, values = (th.as_tensor(part).numpy(force=True) for part in (output.reward, output.value))
        return ImaginedStep(output.latent, rewards, values)

    def observe(self, latents: Any) -> np.ndarray:
        """
        :param latents: B latent states
        :return: Observations in ``observation_space``, a new array, shape ``[B, *observation_space.shape]``
        """
        flat, space = flat_latents(latents), self.observation_space
        if self.decoder is None:
            return flat.numpy(force=True).copy()
        assert isinstance(space, spaces.Box)
        with th.no_grad():
            decoded = self.decoder(flat).numpy(force=True)
        scaled = np.rint(255 * decoded) if self.decoder.is_image else decoded
        return np.clip(scaled, space.low, space.high).astype(space.dtype)
