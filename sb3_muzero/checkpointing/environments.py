"""State of the environments: statistics of VecNormalize, and the pickled environments."""

import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium.utils import EzPickle
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_normalize

from sb3_muzero.common.serialization import validate_array, validate_number


def unwrapped(env: VecEnv) -> tuple[list[VecEnvWrapper], VecEnv]:
    """
    :param env: Vectorized environment
    :return: Its wrappers, outermost first, and the innermost vectorized environment
    """
    wrappers: list[VecEnvWrapper] = []
    while isinstance(env, VecEnvWrapper):
        wrappers.append(env)
        env = env.venv
    return wrappers, env


def _layers(env: Any) -> Iterator[Any]:
    """:return: Environment and everything it wraps, outermost first"""
    while env is not None:
        yield env
        env = getattr(env, "env", None)


def _wrapper_names(env: gym.Env) -> list[str]:
    wrappers = itertools.takewhile(lambda layer: isinstance(layer, gym.Wrapper), _layers(env))
    return [type(layer).__qualname__ for layer in [*wrappers, env.unwrapped]]


def _obs_rms(normalize: VecNormalize) -> dict[str, Any]:
    """:return: Statistics of observations by their keys, empty without normalization"""
    rms: Any = normalize.obs_rms if normalize.norm_obs else {}
    return rms if isinstance(rms, dict) else {"": rms}


def environment_state(env: VecEnv) -> dict[str, Any]:
    """
    :param env: Training environments
    :return: Statistics of VecNormalize, and the environments as pickled bytes, or else the reason why they can't be pickled
    """
    state: dict[str, Any] = {"statistics": None, "pickle": None, "why_not": None}
    normalize = unwrap_vec_normalize(env)
    if normalize is not None:
        obs_rms = {key: vars(rms).copy() for key, rms in _obs_rms(normalize).items()}
        state["statistics"] = {"returns": normalize.returns, "ret_rms": vars(normalize.ret_rms).copy(), "obs_rms": obs_rms}
    wrappers, inner = unwrapped(env)
    if type(inner) is not DummyVecEnv:
        state["why_not"] = f"environments of a {type(inner).__name__} are not in this process"
        return state
    for layer in itertools.chain(*map(_layers, inner.envs)):
        if isinstance(layer, EzPickle) and type(layer).__setstate__ is EzPickle.__setstate__:
            state["why_not"] = f"{type(layer).__name__} is pickled by its arguments, without its state (EzPickle)"
            return state
    excluded = ("venv", "class_attributes")
    attributes = [{name: value for name, value in vars(wrapper).items() if name not in excluded} for wrapper in wrappers]
    try:
        state["pickle"] = np.frombuffer(cloudpickle.dumps((vars(inner), attributes)), np.uint8)
    except Exception as error:  # of any kind, raised by a user's environment
        state["why_not"] = f"the environments can't be pickled: {error!r}"
    return state


def load_statistics(env: VecEnv, state: dict[str, Any]) -> None:
    """
    Load the statistics of VecNormalize, with the returns of the running episodes where there are as many environments.

    :param env: Training environments
    :param state: Result of ``environment_state``
    :raises ValueError: if the environments are not wrapped in the same way, or for invalid statistics
    """
    statistics, normalize = state["statistics"], unwrap_vec_normalize(env)
    if (statistics is None) != (normalize is None):
        raise ValueError(f"`env` must {'not ' if statistics is None else ''}be wrapped in VecNormalize, as in the checkpoint")
    if normalize is None:
        return
    if normalize.norm_obs != bool(statistics["obs_rms"]):
        raise ValueError(f"`env` must be wrapped in VecNormalize with `norm_obs={not normalize.norm_obs}`, as before")
    obs_rms = [(rms, statistics["obs_rms"][key]) for key, rms in _obs_rms(normalize).items()]
    for rms, values in [(normalize.ret_rms, statistics["ret_rms"]), *obs_rms]:
        rms.count = validate_number("VecNormalize.count", values["count"], float, 0)
        for name in ("mean", "var"):
            loaded = np.asarray(values[name], np.float64)  # scalars are stored as numbers
            setattr(rms, name, validate_array(f"VecNormalize.{name}", loaded, np.asarray(getattr(rms, name), np.float64)))
    if len(statistics["returns"]) == env.num_envs:
        normalize.returns = validate_array("VecNormalize.returns", statistics["returns"], normalize.returns)


def unpickle_environments(env: VecEnv, state: dict[str, Any]) -> None:
    """
    Restore the environments in the middle of their episodes. This executes code from the file.

    :param env: Training environments
    :param state: Result of ``environment_state``
    :raises ValueError: if the environments were not saved, or are not wrapped in the same way
    """
    if state["pickle"] is None:
        raise ValueError(f"The checkpoint contains no environments: {state['why_not']}")
    try:
        inner_attributes, wrapper_attributes = pickle.loads(state["pickle"].tobytes())
    except Exception as error:  # of any kind, raised by a user's environment
        raise ValueError(f"The environments can't be unpickled: {error!r}; resume without `restore_environments`") from error
    wrappers, inner = unwrapped(env)
    if len(wrappers) != len(wrapper_attributes) or type(inner) is not DummyVecEnv:
        raise ValueError(f"`env` must be a DummyVecEnv with {len(wrapper_attributes)} wrappers, got {env}")
    saved, found = (list(map(_wrapper_names, envs)) for envs in (inner_attributes["envs"], inner.envs))
    if saved != found:
        raise ValueError(f"`env` must be wrapped as in the checkpoint, {saved}, got {found}")
    vars(inner).update(inner_attributes)
    for wrapper, attributes in zip(wrappers, wrapper_attributes, strict=True):
        vars(wrapper).update(attributes)
