"""Episodes that a model plays, to look into or to watch."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from PIL import Image
from stable_baselines3.common.vec_env import VecEnv

from sb3_muzero.action_masks import env_action_masks, has_action_masks
from sb3_muzero.buffers import SequenceReplayBuffer
from sb3_muzero.muzero import MuZero
from sb3_muzero.observation_ring import map_observations


class Episode(NamedTuple):
    """
    What one environment showed from a reset on, T steps.

    :param observations: As the model saw them, T + 1 of them, the last one after the last step
    :param actions: Indices, counted from 0, shape ``[T]``
    :param rewards: Shape ``[T]``
    :param root_values: Of the search at each step, shape ``[T]``
    :param action_masks: True for legal actions, shape ``[T, num_actions]``; ``None`` where every action always is
    :param terminated: Whether it ended in a terminal state
    :param complete: Whether it ended at all, in time
    """

    observations: list[Any]
    actions: np.ndarray
    rewards: np.ndarray
    root_values: np.ndarray
    action_masks: np.ndarray | None
    terminated: bool
    complete: bool


class _Running:
    """An episode that goes on."""

    def __init__(self, observation: Any) -> None:
        self.observations = [observation]
        self.actions: list[int] = []
        self.rewards: list[float] = []
        self.root_values: list[float] = []
        self.action_masks: list[np.ndarray] = []

    def ended(self, terminated: bool, complete: bool) -> Episode:
        masks = np.array(self.action_masks) if self.action_masks else None
        actions, rewards, root_values = np.array(self.actions), np.array(self.rewards), np.array(self.root_values)
        return Episode(self.observations, actions, rewards, root_values, masks, terminated, complete)


def one_of(observations: Any, env: int) -> Any:
    """:return: A copy of one environment's"""
    return map_observations(lambda part: np.array(part[env]), observations)


def successors(next_observations: Any, dones: np.ndarray, infos: list[dict[str, Any]]) -> Any:
    """
    :param next_observations: Of ``VecEnv.step``, which resets environments that are done
    :param dones: Which are
    :param infos: What they ended with
    :return: What followed, the ends of episodes for the resets in their place
    """
    result = map_observations(np.copy, next_observations)
    for env in np.flatnonzero(dones):
        ending = infos[env]["terminal_observation"]
        if isinstance(result, dict):
            for key in result:
                result[key][env] = ending[key]
        else:
            result[env] = ending
    return result


def play(
    model: MuZero, env: VecEnv, num_steps: int, deterministic: bool, replay_buffer: SequenceReplayBuffer | None = None
) -> list[Episode]:
    """
    Let a model play from a reset on, in all environments at once.

    :param model: The model
    :param env: Environments as it was trained in
    :param num_steps: Steps of all environments together, rounded up
    :param deterministic: Without the noise that explores
    :param replay_buffer: Keeps the steps too, with their searches
    :return: Episodes, the incomplete ones last
    """
    space = model.policy.action_space
    masked = has_action_masks(env)
    observations: Any = env.reset()
    running = [_Running(one_of(observations, i)) for i in range(env.num_envs)]
    complete: list[Episode] = []
    for _ in range(-(-num_steps // env.num_envs)):
        masks = env_action_masks(env, int(space.n)) if masked else None
        obs_tensor, _ = model.policy.obs_to_tensor(observations)
        search = model.policy.plan(obs_tensor, deterministic=deterministic, action_masks=masks)
        next_observations, rewards, dones, infos = env.step(search.action + space.start)
        following = successors(next_observations, dones, infos)
        if replay_buffer is not None:
            replay_buffer.store_search(search.action_weights, search.value, 0)
            if masks is not None:
                replay_buffer.store_action_masks(masks)
            replay_buffer.add(observations, following, search.action, rewards, dones, infos)
        for i, episode in enumerate(running):
            episode.actions.append(int(search.action[i]))
            episode.rewards.append(float(rewards[i]))
            episode.root_values.append(float(search.value[i]))
            if masks is not None:
                episode.action_masks.append(masks[i])
            episode.observations.append(one_of(following, i))
            if dones[i]:
                complete.append(episode.ended(not infos[i].get("TimeLimit.truncated", False), complete=True))
                running[i] = _Running(one_of(next_observations, i))
        observations = next_observations
    return complete + [episode.ended(False, complete=False) for episode in running if episode.actions]


def stacked(observations: list[Any], device: th.device) -> Any:
    """
    :param observations: Single ones
    :param device: Where to
    :return: One batch of them
    """
    if isinstance(observations[0], dict):
        return {key: stacked([part[key] for part in observations], device) for key in observations[0]}
    return th.as_tensor(np.stack(observations), device=device)


def film(model: MuZero, env: VecEnv, num_steps: int) -> list[np.ndarray]:
    """
    Let a model play an episode and watch.

    :param model: The model
    :param env: An environment with the render mode "rgb_array"
    :param num_steps: Steps at most
    :return: Frames, each of shape ``[height, width, 3]``, uint8
    """
    masked = has_action_masks(env)
    observations: Any = env.reset()
    frames = [env.render()]
    for _ in range(num_steps):
        masks = env_action_masks(env, int(model.policy.action_space.n)) if masked else None
        actions, _ = model.predict(observations, deterministic=True, action_masks=masks)
        observations, _, dones, _ = env.step(actions)
        if dones[0]:  # what is there to see is the next episode
            break
        frames.append(env.render())
    return [frame for frame in frames if frame is not None]


def save_gif(frames: list[np.ndarray], path: str | Path, fps: int = 30) -> None:
    """
    :param frames: Each of shape ``[height, width, 3]``, uint8
    :param path: File to write
    :param fps: Frames per second
    """
    first, *rest = map(Image.fromarray, frames)
    first.save(path, format="GIF", save_all=True, append_images=rest, duration=1000 // fps, loop=0)
