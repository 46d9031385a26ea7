"""Environments in a checkpoint: VecNormalize's statistics, and the environments themselves as pickled bytes."""

import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, unwrap_vec_normalize

from sb3_muzero.common.serialization import validate_array, validate_number

STATISTICS = ("mean", "var", "count")


def unwrapped(env: VecEnv) -> tuple[list[VecEnvWrapper], VecEnv]:
    """:return: The wrappers of vectorised environments, outermost first, and what they wrap"""
    wrappers: list[VecEnvWrapper] = []
    while isinstance(env, VecEnvWrapper):
        wrappers.append(env)
        env = env.venv
    return wrappers, env


def _layers(env: Any) -> Iterator[Any]:
    """:return: An environment and those inside, of wrappers of any kind, outermost first"""
    while env is not None:
        yield env
        env = getattr(env, "env", None)


def _wrapper_names(env: Any) -> list[str]:
    names = []
    while isinstance(env, gym.Wrapper):
        names.append(type(env).__qualname__)
        env = env.env
    return [*names, type(env).__qualname__]


def environment_state(env: VecEnv) -> dict[str, Any]:
    """
    :param env: Training environments
    :return: VecNormalize's statistics, and the environments themselves as pickled bytes, where they are of this process and
        can be pickled; else why not
    """
    state: dict[str, Any] = {"statistics": None, "pickle": None, "why_not": None}
    normalize = unwrap_vec_normalize(env)
    if normalize is not None:
        observed: Any = normalize.obs_rms if normalize.norm_obs else {}
        observed = observed if isinstance(observed, dict) else {"": observed}
        state["statistics"] = {
            "returns": normalize.returns,
            "ret_rms": {name: getattr(normalize.ret_rms, name) for name in STATISTICS},
            "obs_rms": {key: {name: getattr(rms, name) for name in STATISTICS} for key, rms in observed.items()},
        }
    wrappers, inner = unwrapped(env)
    if type(inner) is not DummyVecEnv:
        state["why_not"] = f"environments of a {type(inner).__name__} are not of this process"
        return state
    held = [
        {name: value for name, value in vars(wrapper).items() if name not in ("venv", "class_attributes")}
        for wrapper in wrappers
    ]
    for layer in itertools.chain(*map(_layers, inner.envs)):
        if isinstance(layer, EzPickle) and type(layer).__setstate__ is EzPickle.__setstate__:
            state["why_not"] = f"{type(layer).__name__} is pickled by its arguments, without its state (EzPickle)"
            return state
    try:
        pickled = cloudpickle.dumps((vars(inner), held))
    except Exception as error:  # whatever a user's environment may raise
        state["why_not"] = f"the environments can't be pickled: {error!r}"
    else:
        state["pickle"] = np.frombuffer(pickled, np.uint8)
    return state


def load_statistics(env: VecEnv, state: dict[str, Any]) -> None:
    """
    :param env: Environments as they were
    :param state: What ``environment_state`` gave
    :raises ValueError: if there are statistics of a VecNormalize that is not there
    """
    statistics, normalize = state["statistics"], unwrap_vec_normalize(env)
    if (statistics is None) != (normalize is None):
        raise ValueError(f"`env` must {'not ' if statistics is None else ''}be wrapped in VecNormalize, as before")
    if normalize is None:
        return
    if normalize.norm_obs != bool(statistics["obs_rms"]):
        raise ValueError(f"`env` must be wrapped in VecNormalize with `norm_obs={not normalize.norm_obs}` as it was")
    returns = validate_array("VecNormalize.returns", statistics["returns"], normalize.returns)
    means: Any = {"ret_rms": (normalize.ret_rms, statistics["ret_rms"])}
    for key, values in statistics["obs_rms"].items():
        means[f"obs_rms {key}"] = normalize.obs_rms[key] if key else normalize.obs_rms, values  # type: ignore[index]
    for what, (rms, values) in means.items():
        rms.count = validate_number(f"VecNormalize's {what}.count", values["count"], float, 0)
        for name in ("mean", "var"):
            given = np.asarray(values[name], np.float64)  # one of a scalar was written as a number
            setattr(
                rms, name, validate_array(f"VecNormalize's {what}.{name}", given, np.asarray(getattr(rms, name), np.float64))
            )
    normalize.returns = returns


def unpickle_environments(env: VecEnv, state: dict[str, Any]) -> None:
    """
    Put environments back to where they were. This runs whatever code the file holds.

    :param env: Environments as they were
    :param state: What ``environment_state`` gave
    :raises ValueError: if they were not stored, or are wrapped otherwise
    """
    if state["pickle"] is None:
        raise ValueError(f"The checkpoint holds no environments: {state['why_not']}")
    try:
        inside, held = pickle.loads(state["pickle"].tobytes())
    except Exception as error:  # whatever a user's environment may raise
        raise ValueError(f"The environments can't be unpickled: {error!r}; resume without `restore_environments`") from error
    wrappers, inner = unwrapped(env)
    if len(wrappers) != len(held) or type(inner) is not DummyVecEnv:
        raise ValueError(f"`env` must be wrapped as it was, {len(held)} times around a DummyVecEnv, got {env}")
    was, given = (list(map(_wrapper_names, envs)) for envs in (inside["envs"], inner.envs))
    if was != given:
        raise ValueError(f"`env` must be wrapped as it was, {was}, got {given}")
    vars(inner).update(inside)
    for wrapper, attributes in zip(wrappers, held, strict=True):
        vars(wrapper).update(attributes)
