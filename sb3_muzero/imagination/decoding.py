"""Fits decoders of what a model imagines. Neither the model nor the state of the random number generators is changed."""

from typing import Any

import numpy as np
import torch as th
from PIL import Image
from stable_baselines3.common.type_aliases import GymEnv

from sb3_muzero.common.random_state import random_state_kept
from sb3_muzero.common.vec_env_checks import frames_in_observation
from sb3_muzero.imagination.world import ImaginedWorld, encode_flat, evaluating, flat_latents
from sb3_muzero.models.decoder import Decoder, DecoderProbe, encode, to_rgb
from sb3_muzero.muzero import MuZero


@random_state_kept()
def fit_decoder(model: MuZero, observations: Any = None, num_samples: int = 10_000, num_updates: int = 2_000) -> Decoder:
    """
    Fit a decoder of observations, for ``ImaginedVecEnv(decoder=...)``. An agent that is trained with decoded observations acts
    in the real environment as it is.

    :param model: A model
    :param observations: What the decoder is fitted to, as ``model.predict`` takes them, shape ``[N, *obs_shape]``. By default
        observations of the model's replay buffer
    :param num_samples: Number of observations to draw from them
    :param num_updates: Number of gradient updates
    :return: The decoder
    :raises ValueError: for a model without data, and for observations that are neither vectors nor channels-first images
    """
    world, policy = ImaginedWorld(model, observations), model.policy
    decoder = DecoderProbe(policy.represent, model.observation_space, policy.device, frames_in_observation(model.get_env()))
    drawn = world.draw(num_samples, np.random.default_rng(0))
    with evaluating(policy):
        latents = encode(policy.represent, drawn)
    decoder.fit_latents(latents, decoder.newest(drawn), num_updates)
    return decoder


@random_state_kept()
def fit_renderer(model: MuZero, env: GymEnv, num_steps: int = 2_000, size: int = 64, num_updates: int = 500) -> Decoder:
    """
    Fit a decoder of rendered frames, for ``ImaginedEnv(renderer=...)``. The model plays, with a share of random actions that
    differs between episodes.

    :param model: A model
    :param env: Its environment, with the render mode "rgb_array"
    :param num_steps: Number of frames
    :param size: Larger side of the frames in pixels; larger frames are scaled down
    :param num_updates: Number of gradient updates
    :return: The decoder, of images of shape ``[3, height, width]``
    :raises ValueError: for an environment that renders no frames
    """
    venv, policy = model._wrap_env(env, verbose=0), model.policy
    observations: Any = venv.reset()
    latents, frames = [], []
    random_share = np.random.rand(venv.num_envs)
    for _ in range(-(-num_steps // venv.num_envs)):
        shown = [frame for frame in venv.get_images() if isinstance(frame, np.ndarray)] if venv.render_mode else []
        if len(shown) < venv.num_envs:
            raise ValueError(f'`env` must render frames: make it with `render_mode="rgb_array"`, got {venv.render_mode!r}')
        frames += [scaled_down(frame, size) for frame in shown]
        latents.append(encode_flat(policy, policy.obs_to_tensor(observations)[0]))
        planned, _ = model.predict(observations)
        drawn = policy.actions.to_env(policy.actions.sample(venv.num_envs))
        is_random = np.random.rand(venv.num_envs) < random_share
        actions = np.stack([drawn[env] if is_random[env] else planned[env] for env in range(venv.num_envs)])
        observations, _, dones, _ = venv.step(actions)
        random_share[dones] = np.random.rand(dones.sum())
    targets = th.as_tensor(np.stack(frames), device=policy.device).movedim(-1, 1).float() / 255
    known = th.cat(latents)
    decoder = Decoder(known.shape[1], tuple(targets.shape[1:]), is_image=True, device=policy.device)
    decoder.fit_latents(known, targets, num_updates, batch_size=128)
    return decoder


def scaled_down(frame: np.ndarray, size: int) -> np.ndarray:
    """
    :param frame: Shape ``[height, width, 3]``, uint8
    :param size: Largest side in pixels
    :return: The frame, scaled down if it is larger
    """
    factor = size / max(frame.shape[:2])
    if factor >= 1:
        return frame
    height, width = (max(round(factor * side), 1) for side in frame.shape[:2])
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX))


def pictures(decoder: Decoder, latents: Any) -> np.ndarray:
    """
    :param decoder: Decoder of images
    :param latents: B latent states
    :return: What is decoded from them, in RGB, shape ``[B, height, width, 3]``, uint8
    """
    with th.no_grad():
        decoded = decoder(flat_latents(latents)).numpy(force=True)
    return np.rint(255 * to_rgb(decoded)).astype(np.uint8)
