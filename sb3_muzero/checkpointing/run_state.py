"""State of a complete training run, as nested data for ``sb3_muzero.common.serialization``."""

import warnings
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_muzero.checkpointing.environments import environment_state, load_statistics, unpickle_environments, unwrapped
from sb3_muzero.checkpointing.optimizer import load_optimizer_state, optimizer_state
from sb3_muzero.checkpointing.settings import constructor_arguments, encode
from sb3_muzero.common.random_state import random_state, set_random_state
from sb3_muzero.muzero import MuZero

FORMAT = 4


def run_state(model: MuZero) -> dict[str, Any]:
    """
    :param model: Model, between two rollouts
    :return: State of its run
    """
    assert model.env is not None
    infos, numbers = model.ep_info_buffer or (), (int, float, np.number)  # other entries may not be serializable
    return {
        "format": FORMAT,
        "settings": {name: encode(value) for name, value in constructor_arguments(model).items()},
        "policy": model.policy.state_dict(),
        "optimizer": optimizer_state(model.policy.optimizer),
        "replay_buffer": model.replay_buffer.state(),
        "learner": model.learner.state(),
        "warmup": model.warmup.state(),
        "collector": model.collector.state(),
        "algorithm": model.state(),
        "episodes": {
            "infos": [{name: value for name, value in info.items() if isinstance(value, numbers)} for info in infos],
            "successes": [float(success) for success in model.ep_success_buffer or ()],
        },
        # Only used if running episodes are restored
        "last_obs": {"seen": model._last_obs, "original": model._last_original_obs, "starts": model._last_episode_starts},
        "environments": environment_state(model.env),
        "random": random_state(),
        "action_space": {"generator": model.action_space.np_random.bit_generator.state},
    }


def load_policy(model: MuZero, state: dict[str, Any]) -> None:
    """
    Load what acting needs.

    :param model: New model with the settings in ``state``, and with its environments, of any number
    :param state: Result of ``run_state``
    :raises ValueError: if the state does not fit the model or its environments
    """
    assert model.env is not None
    for name in ("observation_space", "action_space"):
        if (own := str(getattr(model, name))) != (saved := state["replay_buffer"]["shape"][name]):
            raise ValueError(f"`env` must be of `{name}` {saved}, got {own}")
    load_statistics(model.env, state["environments"])
    had_turns = any(name.startswith("latent_model.turn_head.") for name in state["policy"])
    if had_turns != model.predict_turns:
        raise ValueError(f"`env` must {'' if had_turns else 'not '}have `to_play`, as in the checkpoint")
    model.policy.load_state_dict(state["policy"])
    for name, parameter in model.policy.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"the policy's `{name}` must have finite numbers")
    model.load_state(state["algorithm"])


def load_run_state(model: MuZero, state: dict[str, Any], restore_environments: bool) -> None:
    """
    :param model: New model with the settings in ``state``, and with its environments
    :param state: Result of ``run_state``
    :param restore_environments: Whether to unpickle the environments and continue the running episodes
    :raises ValueError: if the state does not fit the model or its environments
    """
    assert model.env is not None
    model.replay_buffer.load_state(state["replay_buffer"])  # checks spaces and number of environments
    load_policy(model, state)
    if restore_environments:
        unpickle_environments(model.env, state["environments"])
    load_optimizer_state(model.policy.optimizer, state["optimizer"])
    model.learner.load_state(state["learner"])
    model.warmup.load_state(state["warmup"])
    model.ep_info_buffer = deque(state["episodes"]["infos"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(state["episodes"]["successes"], maxlen=model._stats_window_size)
    model.action_space.np_random.bit_generator.state = state["action_space"]["generator"]
    set_random_state(state["random"])
    if restore_environments:
        model.collector.load_state(state["collector"])
        last = state["last_obs"]
        model._last_obs, model._last_original_obs, model._last_episode_starts = last["seen"], last["original"], last["starts"]
        return
    normalizing = (gym.wrappers.NormalizeObservation, gym.wrappers.NormalizeReward)
    can_tell = isinstance(unwrapped(model.env)[1], DummyVecEnv | SubprocVecEnv)
    if can_tell and any(any(model.env.env_is_wrapped(wrapper)) for wrapper in normalizing):
        saved = "`restore_environments=True` or " * (state["environments"]["pickle"] is not None)
        warnings.warn(
            f"The statistics of gymnasium's NormalizeObservation and NormalizeReward are reset; "
            f"{saved}SB3's VecNormalize would restore them"
        )
    model._last_obs = None  # `learn` resets the environments
    model.env.seed(int(np.random.randint(2**31 - 1)))  # otherwise the first episodes of the run would be repeated
