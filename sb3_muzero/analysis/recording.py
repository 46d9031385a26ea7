"""Episodes that a model plays, to look into or to watch."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from PIL import Image
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, is_vecenv_wrapped, unwrap_vec_normalize

from sb3_muzero.common.action_masks import has_action_masks
from sb3_muzero.common.pytree import tree_map
from sb3_muzero.muzero import MuZero
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer
from sb3_muzero.search.checks import check_action_masks


class Episode(NamedTuple):
    """
    What one environment showed from a reset on, T steps.

    :param observations: As the model saw them, T + 1 of them, the last one after the last step
    :param actions: Indices, counted from 0, shape ``[T]``
    :param rewards: Shape ``[T]``
    :param root_values: Of the search at each step, shape ``[T]``
    :param action_masks: True for legal actions, shape ``[T, num_actions]``; ``None`` where every action always is
    :param terminated: Whether it ended in a terminal state
    """

    observations: list[Any]
    actions: np.ndarray
    rewards: np.ndarray
    root_values: np.ndarray
    action_masks: np.ndarray | None
    terminated: bool


class _Running:
    """An episode that goes on."""

    def __init__(self, observation: Any) -> None:
        self.observations = [observation]
        self.actions: list[int] = []
        self.rewards: list[float] = []
        self.root_values: list[float] = []
        self.action_masks: list[np.ndarray] = []

    def ended(self, terminated: bool) -> Episode:
        masks = np.array(self.action_masks) if self.action_masks else None
        actions, rewards, root_values = np.array(self.actions), np.array(self.rewards), np.array(self.root_values)
        return Episode(self.observations, actions, rewards, root_values, masks, terminated)


def one_of(observations: Any, env: int) -> Any:
    """:return: A copy of one environment's"""
    return tree_map(lambda part: np.array(part[env]), observations)


def successors(next_observations: Any, endings: dict[int, Any]) -> Any:
    """
    :param next_observations: Of ``VecEnv.step``, which resets environments that are done
    :param endings: What episodes ended with, by environment
    :return: What followed, the ends of episodes for the resets in their place
    """
    result = tree_map(np.copy, next_observations)
    for env, ending in endings.items():
        if isinstance(result, dict):
            for key in result:
                result[key][env] = ending[key]
        else:
            result[env] = ending
    return result


class Recording(NamedTuple):
    """
    What a model played.

    :param episodes: As the model saw them (lost lives and normalised rewards, if that is what it was trained with), each
        environment's share of complete ones, then those that were cut short
    :param returns: Of all complete episodes as Monitor tells them, where there is one, and in the environment's own units
    :param lengths: Their steps
    :param cut_short: How many were not complete when the steps were used up
    """

    episodes: list[Episode]
    returns: list[float]
    lengths: list[int]
    cut_short: int


def plays_with_masks(model: MuZero, env: VecEnv) -> bool:
    """
    :param model: A model
    :param env: Environments
    :return: Whether it plays them with action masks, as it was trained; untrained wherever there are some
    :raises ValueError: if it was trained with masks and there are none
    """
    supported = has_action_masks(env)
    if model.uses_action_masks and not supported:
        raise ValueError(
            "The model was trained with action masks, but the environment has no method `action_masks`: "
            "wrap it as it was for training"
        )
    return model.uses_action_masks if model.num_timesteps > 0 else supported


def play(
    model: MuZero,
    env: VecEnv,
    num_episodes: int,
    max_steps: int,
    deterministic: bool,
    replay_buffer: SequenceReplayBuffer | None = None,
) -> Recording:
    """
    Let a model play from a reset on, in all environments at once. As for ``evaluate_policy`` each environment has its share of
    the episodes, since those that come first are the short ones.

    :param model: The model
    :param env: Environments as it was trained in
    :param num_episodes: Episodes to complete, rounded up to as many for each environment
    :param max_steps: Steps of all environments together after which it ends anyhow
    :param deterministic: Without the noise that explores
    :param replay_buffer: Keeps the steps too, as ``MuZero`` does, with their searches
    :return: What was played
    :raises ValueError: if the model was trained with action masks, of which the environments have none
    """
    space = model.policy.action_space
    masked, normalize = plays_with_masks(model, env), unwrap_vec_normalize(env)
    monitored = is_vecenv_wrapped(env, VecMonitor) or env.env_is_wrapped(Monitor)[0]
    share = -(-num_episodes // env.num_envs)
    observations: Any = env.reset()
    stored = observations if normalize is None else normalize.get_original_obs()
    running = [_Running(one_of(observations, i)) for i in range(env.num_envs)]
    complete: list[Episode] = []
    results: list[list[tuple[float, int]]] = [[] for _ in running]
    earned, steps = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    for _ in range(max_steps // env.num_envs):
        masks = check_action_masks(get_action_masks(env), env.num_envs, int(space.n)) if masked else None
        obs_tensor, _ = model.policy.obs_to_tensor(observations)
        search = model.policy.plan(obs_tensor, deterministic=deterministic, action_masks=masks)
        observations, rewards, dones, infos = env.step(search.action + space.start)
        endings = {i: infos[i]["terminal_observation"] for i in np.flatnonzero(dones).tolist()}
        following = successors(observations, endings)
        raw_rewards = rewards if normalize is None else normalize.get_original_reward()
        if replay_buffer is not None:
            replay_buffer.store_search(search.action_weights, search.value, 0)
            if masks is not None:
                replay_buffer.store_action_masks(masks)
            raw = observations if normalize is None else normalize.get_original_obs()
            raw_endings = endings if normalize is None else {i: normalize.unnormalize_obs(end) for i, end in endings.items()}
            replay_buffer.add(stored, successors(raw, raw_endings), search.action, raw_rewards, dones, infos)
            stored = raw
        earned, steps = earned + raw_rewards, steps + 1
        for i, episode in enumerate(running):
            episode.actions.append(int(search.action[i]))
            episode.rewards.append(float(rewards[i]))
            episode.root_values.append(float(search.value[i]))
            if masks is not None:
                episode.action_masks.append(masks[i])
            episode.observations.append(one_of(following, i))
            if not dones[i]:
                continue
            if len(results[i]) < share:
                complete.append(episode.ended(not infos[i].get("TimeLimit.truncated", False)))
                if not monitored:
                    results[i].append((float(earned[i]), int(steps[i])))
                elif "episode" in infos[i]:  # not for a lost life
                    results[i].append((infos[i]["episode"]["r"], infos[i]["episode"]["l"]))
            running[i] = _Running(one_of(observations, i))
            earned[i] = steps[i] = 0
        if all(len(done) >= share for done in results):
            break
    cut = [episode.ended(False) for episode, done in zip(running, results, strict=True) if len(done) < share]
    returns = [earned for done in results for earned, _ in done]
    lengths = [taken for done in results for _, taken in done]
    return Recording(complete + [episode for episode in cut if len(episode.actions) > 0], returns, lengths, len(cut))


def stacked(observations: list[Any], device: th.device) -> Any:
    """
    :param observations: Single ones
    :param device: Where to
    :return: One batch of them
    """
    if isinstance(observations[0], dict):
        return {key: stacked([part[key] for part in observations], device) for key in observations[0]}
    return th.as_tensor(np.stack(observations), device=device)


def record_frames(model: MuZero, env: VecEnv, num_steps: int) -> list[np.ndarray]:
    """
    Let a model play an episode and watch.

    :param model: The model
    :param env: An environment with the render mode "rgb_array"
    :param num_steps: Steps at most
    :return: Frames, each of shape ``[height, width, 3]``, uint8
    """
    masked = plays_with_masks(model, env)
    observations: Any = env.reset()
    frames = [env.render()]
    for _ in range(num_steps):
        masks = check_action_masks(get_action_masks(env), env.num_envs, int(model.policy.action_space.n)) if masked else None
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
