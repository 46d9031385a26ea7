"""Episodes played by a model: their data, or frames to watch."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from PIL import Image
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, is_vecenv_wrapped

from sb3_muzero.collector import Collector
from sb3_muzero.common.action_masks import has_action_masks
from sb3_muzero.common.pytree import tree_map
from sb3_muzero.muzero import MuZero
from sb3_muzero.replay.replay_buffer import SequenceReplayBuffer


class Episode(NamedTuple):
    """
    One episode of T steps.

    :param observations: Observations of the model, ``T + 1`` of them, the last one after the last step
    :param actions: Indices, counted from 0, shape ``[T]``
    :param rewards: Shape ``[T]``
    :param root_values: Value of the improved policy at each step, shape ``[T]``
    :param action_masks: True for legal actions, shape ``[T, num_actions]``; ``None`` without masks
    :param terminated: Whether it ended in a terminal state
    :param turn_signs: See ``SearchStatistics``, shape ``[T]``
    """

    observations: list[Any]
    actions: np.ndarray
    rewards: np.ndarray
    root_values: np.ndarray
    action_masks: np.ndarray | None
    terminated: bool
    turn_signs: np.ndarray | None = None


class _Running:
    """An unfinished episode."""

    def __init__(self, observation: Any) -> None:
        self.observations = [observation]
        self.steps: list[tuple[Any, ...]] = []  # action, reward, root value, action mask and turn sign of each

    def ended(self, terminated: bool) -> Episode:
        actions, rewards, root_values, *optional = zip(*self.steps, strict=True)
        masks, signs = (None if part[0] is None else np.array(part) for part in optional)
        played = np.array(actions), np.array(rewards, np.float64), np.array(root_values, np.float64)
        return Episode(self.observations, *played, masks, terminated, signs)


def one_of(observations: Any, env: int) -> Any:
    """:return: A copy of the observation of one environment"""
    return tree_map(lambda part: np.array(part[env]), observations)


class Recording(NamedTuple):
    """
    Episodes played by a model.

    :param episodes: Episodes as in training (with lost lives as ends and normalised rewards, if it was trained so), first the
        complete ones of each environment, then those that were cut short
    :param returns: Returns of complete episodes in the environment's own units, as Monitor reports them if there is one
    :param lengths: Their numbers of steps
    :param cut_short: Number of episodes that were incomplete when the limit of steps was reached
    """

    episodes: list[Episode]
    returns: list[float]
    lengths: list[int]
    cut_short: int


def plays_with_masks(model: MuZero, env: VecEnv) -> bool:
    """
    :param model: A model
    :param env: Environments
    :return: Whether the model plays with action masks: as in training, or, if untrained, if the environments have masks
    :raises ValueError: if the model was trained with masks and the environments have none
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
    Let a model play in all environments at once. As in ``evaluate_policy``, each environment plays the same number of
    episodes, since the first episodes to end are the short ones.

    :param model: The model
    :param env: Environments, wrapped as in training
    :param num_episodes: Number of episodes, rounded up to a multiple of the number of environments
    :param max_steps: Maximum number of steps of all environments together
    :param deterministic: Whether to play without exploration noise
    :param replay_buffer: Optionally stores the steps with their search results, as in training
    :return: The episodes
    :raises ValueError: if the model was trained with action masks and the environments have none
    """
    collector = Collector(model.policy, env, use_masking=plays_with_masks(model, env))
    monitored = is_vecenv_wrapped(env, VecMonitor) or env.env_is_wrapped(Monitor)[0]
    share = -(-num_episodes // env.num_envs)
    observations: Any = env.reset()
    stored = collector.begin(observations)
    running = [_Running(one_of(observations, i)) for i in range(env.num_envs)]
    complete: list[Episode] = []
    results: list[list[tuple[float, int]]] = [[] for _ in running]
    earned, steps = np.zeros(env.num_envs), np.zeros(env.num_envs, dtype=np.int64)
    for _ in range(max_steps // env.num_envs):
        step = collector.step(collector.act(observations, deterministic))
        observations, dones, infos = step.new_obs, step.dones, step.infos
        decision, statistics = step.decision, step.statistics(model_version=0)
        if replay_buffer is not None:
            replay_buffer.add(stored, step.raw_final_obs, decision.actions, step.raw_rewards, dones, infos, statistics)
            stored = step.raw_new_obs
        columns = decision.actions, step.rewards, statistics.root_values, statistics.action_masks, statistics.turn_signs
        earned, steps = earned + step.raw_rewards, steps + 1
        for i, episode in enumerate(running):
            episode.steps.append(tuple(None if column is None else column[i] for column in columns))
            episode.observations.append(one_of(step.final_obs, i))
            if not dones[i]:
                continue
            if len(results[i]) < share:
                complete.append(episode.ended(not infos[i].get("TimeLimit.truncated", False)))
                if not monitored:
                    results[i].append((float(earned[i]), int(steps[i])))
                elif "episode" in infos[i]:  # missing at a lost life
                    results[i].append((infos[i]["episode"]["r"], infos[i]["episode"]["l"]))
            running[i] = _Running(one_of(observations, i))
            earned[i] = steps[i] = 0
        if all(len(done) >= share for done in results):
            break
    cut = [episode for episode, done in zip(running, results, strict=True) if len(done) < share]
    returns = [earned for done in results for earned, _ in done]
    lengths = [taken for done in results for _, taken in done]
    return Recording(complete + [episode.ended(False) for episode in cut if episode.steps], returns, lengths, len(cut))


def stacked(observations: list[Any], device: th.device) -> Any:
    """
    :param observations: Single observations
    :param device: Device of the batch
    :return: One batch of all
    """
    if isinstance(observations[0], dict):
        return {key: stacked([part[key] for part in observations], device) for key in observations[0]}
    return th.as_tensor(np.stack(observations), device=device)


def record_frames(model: MuZero, env: VecEnv, num_steps: int) -> list[np.ndarray]:
    """
    Record an episode of a model.

    :param model: The model
    :param env: An environment with the render mode "rgb_array"
    :param num_steps: Maximum number of steps
    :return: Frames, each of shape ``[height, width, 3]``, uint8
    """
    collector = Collector(model.policy, env, use_masking=plays_with_masks(model, env))
    observations: Any = env.reset()
    frames = [env.render()]
    for step in range(num_steps):
        collector.num_timesteps = step
        masks = collector.action_masks()
        actions, _ = model.predict(observations, deterministic=True, action_masks=masks)
        observations, _, dones, _ = env.step(actions)
        if dones[0]:  # the frame is already that of the next episode
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
