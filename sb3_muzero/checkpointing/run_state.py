"""
All that a run consists of as a tree (``sb3_muzero.common.serialization``), and its files: settings, networks, optimizer,
replay buffer, random states, counters, VecNormalize's statistics, and, as pickled bytes that nobody has to read, the
environments.
"""

import contextlib
import copy
import itertools
import pickle
import random
import re
import sys
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.utils import EzPickle
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, unwrap_vec_normalize

from sb3_muzero.common.serialization import load_npz, save_npz, validate_array, validate_number

FORMAT = 1
# What settings may consist of besides plain values: reading a file makes none but these
CLASSES = (th.nn.Module, th.optim.Optimizer, BaseBuffer)
SCHEDULES = {schedule.__name__: schedule for schedule in (ConstantSchedule, LinearSchedule)}
MISSING = "missing"
STATISTICS = ("mean", "var", "count")


def encode(setting: Any) -> Any:
    """
    :param setting: Value of a constructor's argument
    :return: It as a tree; what can't be made again without running code becomes ``{"missing": what it was}``
    """
    if setting is None or isinstance(setting, bool | int | float | str):
        return setting
    for kind, plain in ((np.bool_, bool), (np.integer, int), (np.floating, float)):
        if isinstance(setting, kind):
            return plain(setting)
    if isinstance(setting, Path):
        return str(setting)
    if isinstance(setting, TrainFreq):
        return encode((setting.frequency, setting.unit.value))
    if isinstance(setting, FloatSchedule):
        return encode(setting.value_schedule)
    if isinstance(setting, th.device):
        return str(setting)
    if isinstance(setting, tuple | list):
        return {"tuple" if isinstance(setting, tuple) else "list": [*map(encode, setting)]}
    if isinstance(setting, dict) and all(isinstance(key, str) for key in setting):
        return {"dict": {key: encode(value) for key, value in setting.items()}}
    if type(setting) in SCHEDULES.values():
        return {"schedule": type(setting).__name__, "state": vars(setting)}
    if isinstance(setting, type) and issubclass(setting, CLASSES) and "<locals>" not in setting.__qualname__:
        return {"class": [setting.__module__, setting.__qualname__]}
    return {MISSING: repr(setting)}


def is_missing(tree: Any) -> bool:
    """
    :param tree: What ``encode`` gave
    :return: Whether something in it can't be made again without running code
    """
    if not isinstance(tree, dict):
        return False
    content: Any
    kind, content = next(iter(tree.items()), ("", ()))
    parts = {"tuple": content, "list": content, "dict": content.values() if kind == "dict" else ()}
    return kind == MISSING or any(map(is_missing, parts.get(kind, ())))


def decode(tree: Any, name: str) -> Any:
    """
    :param tree: What ``encode`` gave
    :param name: The argument
    :return: The setting
    :raises ValueError: for one that is missing, or whose class is not there or none of ``CLASSES``
    """
    if not isinstance(tree, dict):
        return tree
    ((kind, content), *rest) = tree.items()
    if kind == MISSING:
        raise ValueError(f"`{name}` was {content}, which no file can hold: give it again, `resume(..., {name}=...)`")
    if kind in ("tuple", "list"):
        parts = [decode(part, name) for part in content]
        return tuple(parts) if kind == "tuple" else parts
    if kind == "dict":
        return {key: decode(part, name) for key, part in content.items()}
    if kind == "schedule":
        schedule = SCHEDULES[content].__new__(SCHEDULES[content])
        schedule.__dict__.update(rest[0][1])
        return schedule
    module, qualname = content
    found: Any = sys.modules.get(module)  # reading a file must not import what nobody has asked for
    for part in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(part)  # nor may it ask a module that imports what it is asked for
    if not isinstance(found, type) or not issubclass(found, CLASSES):
        raise ValueError(f"`{name}` was {module}.{qualname}, which is not there: import it first, or give it again")
    return found


def random_state() -> dict[str, Any]:
    """:return: States of all random generators that SB3 seeds"""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "numpy": {"kind": kind, "keys": keys, "rest": [position, has_gauss, gauss]},
        "python": {"version": version, "internal": np.array(internal, np.uint64), "gauss": gauss_next},
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_initialized() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """
    :param state: What ``random_state`` gave
    :raises ValueError: for one that no generator can be in: from zeros alone follow zeros for ever
    """
    mersenne_twister = np.empty(624, np.uint32)
    keys, rest, python = state["numpy"]["keys"], state["numpy"]["rest"], state["python"]
    validate_array("numpy's random state", keys, mersenne_twister)
    validate_number("numpy's place in its random state", rest[0], int, 0, len(mersenne_twister))
    if not (keys[1:].any() and python["internal"][1:-1].any() and state["torch"].any()):
        raise ValueError("random states must not be zero")
    np.random.set_state((state["numpy"]["kind"], keys, *rest))
    random.setstate((python["version"], tuple(int(word) for word in python["internal"]), python["gauss"]))
    th.set_rng_state(state["torch"])
    for device, kept in enumerate(state["cuda"][: th.cuda.device_count()]):
        th.cuda.set_rng_state(kept, device)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """:return: Context that leaves all random generators as they were"""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def optimizer_state(optimizer: th.optim.Optimizer) -> dict[str, Any]:
    """:return: Its state"""
    state = optimizer.state_dict()
    return {
        "state": {str(index): values for index, values in state["state"].items()},
        "param_groups": [{name: encode(value) for name, value in group.items()} for group in state["param_groups"]],
    }


def _after_a_step(optimizer: th.optim.Optimizer) -> th.optim.Optimizer:
    """:return: A copy, with a step of no gradient made"""
    trial = copy.deepcopy(optimizer)
    for group in trial.param_groups:
        for parameter in group["params"]:
            parameter.grad = th.zeros_like(parameter)
    trial.step()
    return trial


def load_optimizer_state(optimizer: th.optim.Optimizer, state: dict[str, Any]) -> None:
    """
    :param optimizer: A new one
    :param state: What ``optimizer_state`` gave
    :raises Exception: of any kind, if it does not fit or no step can be made with it
    """
    fitting = _after_a_step(optimizer).state_dict()["state"]  # compiled steps do not check what they read
    for index, values in state["state"].items():
        like = fitting[int(index)]
        if values.keys() != like.keys():
            raise ValueError(f"the optimizer must have gathered {sorted(like)}, got {sorted(values)}")
        for name, value in values.items():
            if isinstance(like[name], th.Tensor):
                as_array = value.numpy(force=True) if isinstance(value, th.Tensor) else value
                validate_array(f"the optimizer's {name}", as_array, like[name].numpy(force=True))
            elif type(value) is not type(like[name]):
                raise ValueError(f"the optimizer's {name} must be like {like[name]!r}, got {value!r}")
    new = optimizer.state_dict()["param_groups"]
    own = [group["params"] for group in new]
    if repr([decode(group["params"], "params") for group in state["param_groups"]]) != repr(own):  # False is no 0
        raise ValueError(f"the optimizer's groups must have the parameters {own}")
    groups = [
        {name: given[name] if is_missing(value) else decode(value, name) for name, value in group.items()}
        for group, given in zip(state["param_groups"], new, strict=True)
    ]
    optimizer.load_state_dict(
        {"state": {int(index): values for index, values in state["state"].items()}, "param_groups": groups}
    )
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, th.Tensor) and value.shape == parameter.shape:
                # Files know no channels-last layout, and fused steps pair numbers by where they lie
                values[name] = th.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    if not all(parameter.isfinite().all() for group in _after_a_step(optimizer).param_groups for parameter in group["params"]):
        raise ValueError("networks and optimizer must have finite numbers")


def _wrappers(env: VecEnv) -> tuple[list[VecEnvWrapper], VecEnv]:
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
    wrappers, inner = _wrappers(env)
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
    wrappers, inner = _wrappers(env)
    if len(wrappers) != len(held) or type(inner) is not DummyVecEnv:
        raise ValueError(f"`env` must be wrapped as it was, {len(held)} times around a DummyVecEnv, got {env}")
    was, given = (list(map(_wrapper_names, envs)) for envs in (inside["envs"], inner.envs))
    if was != given:
        raise ValueError(f"`env` must be wrapped as it was, {was}, got {given}")
    vars(inner).update(inside)
    for wrapper, attributes in zip(wrappers, held, strict=True):
        vars(wrapper).update(attributes)


COUNTERS = {
    int: ("num_timesteps", "_num_timesteps_at_start", "_n_updates", "_episode_num", "_skipped_updates", "_skipped_in_a_row"),
    float: ("_total_timesteps", "_current_progress_remaining", "_first_reward"),
    bool: ("reward_signal_seen", "uses_action_masks", "two_player"),
}  # fmt: skip
# Where environments are, which is read only to go on amid their episodes
AMID_EPISODES = ("_last_obs", "_last_original_obs", "_last_episode_starts", "_random_actions", "_episode_steps")
EPISODES = ("ep_info_buffer", "ep_success_buffer")


def _numbers(entry: Any) -> Any:
    """:return: What Monitor says of an episode, without what else its user has added"""
    if isinstance(entry, dict):
        return {key: value for key, value in entry.items() if isinstance(value, int | float | np.number)}
    return float(entry)


def run_state(model: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """
    :param model: A MuZero between two rollouts
    :param settings: Arguments of its constructor, without the environment
    :return: All that its run consists of, as a tree
    """
    return {
        "format": FORMAT,
        "settings": {name: encode(value) for name, value in settings.items()},
        "policy": model.policy.state_dict(),
        "optimizer": optimizer_state(model.policy.optimizer),
        "replay_buffer": model.replay_buffer.state(),
        "counters": {name: getattr(model, name) for names in COUNTERS.values() for name in names},
        "amid_episodes": {name: getattr(model, name) for name in AMID_EPISODES},
        "episodes": {name: [_numbers(entry) for entry in getattr(model, name) or ()] for name in EPISODES},
        "environments": environment_state(model.env),
        "random": random_state(),
        "action_space": {"generator": model.action_space.np_random.bit_generator.state},
    }


def load_run_state(model: Any, state: dict[str, Any], restore_environments: bool) -> None:
    """
    :param model: A MuZero that was made with the settings of ``state``, and its environments
    :param state: What ``run_state`` gave
    :param restore_environments: Whether environments go on amid their episodes, which runs the code that they were pickled
        with
    :raises ValueError: for environments that are not what they were
    """
    model.replay_buffer.load_state(state["replay_buffer"])  # first: it knows whether spaces and environments are the same
    load_statistics(model.env, state["environments"])
    if restore_environments:
        unpickle_environments(model.env, state["environments"])
    was_finite = {name: bool(tensor.isfinite().all()) for name, tensor in model.policy.state_dict().items()}
    model.policy.load_state_dict(state["policy"])
    load_optimizer_state(model.policy.optimizer, state["optimizer"])
    for name, tensor in model.policy.state_dict().items():
        if was_finite[name] and not tensor.isfinite().all():
            raise ValueError(f"the networks' `{name}` must have finite numbers")
    for kind, names in COUNTERS.items():  # and no other attributes that a file may name
        low = 0 if kind is int else -float("inf")
        for name in names:
            given = state["counters"][name]
            nothing_yet = name == "_first_reward" and given is None
            setattr(model, name, None if nothing_yet else validate_number(name, given, kind, low))
    for name in EPISODES:
        setattr(model, name, deque(map(_numbers, state["episodes"][name]), maxlen=model._stats_window_size))
    model.action_space.np_random.bit_generator.state = state["action_space"]["generator"]
    set_random_state(state["random"])
    if restore_environments:
        for name in AMID_EPISODES:
            setattr(model, name, state["amid_episodes"][name])
    else:
        normalizing = (gym.wrappers.NormalizeObservation, gym.wrappers.NormalizeReward)
        can_tell = isinstance(_wrappers(model.env)[1], DummyVecEnv | SubprocVecEnv)
        if can_tell and any(any(model.env.env_is_wrapped(wrapper)) for wrapper in normalizing):
            warnings.warn(
                "The statistics of gymnasium's NormalizeObservation and NormalizeReward begin anew: only "
                "`restore_environments=True` brings them back; those of SB3's VecNormalize always come back"
            )
        model._last_obs = None  # so that `learn` begins with a reset
        model.env.seed(int(np.random.randint(2**31 - 1)))  # and not with the run's first episodes again


def checkpoints_in(folder: str | Path) -> list[Path]:
    """
    :param folder: Where checkpoints are
    :return: Their files, the one of most steps at the end
    """
    return sorted((path for path in Path(folder).glob("checkpoint_*_steps.npz") if steps_of(path) >= 0), key=steps_of)


def steps_of(path: Path) -> int:
    """
    :param path: A file
    :return: Steps after which it was saved as a checkpoint; -1 if it is none
    """
    match = re.fullmatch(r"checkpoint_(\d+)_steps\.npz", path.name)
    return -1 if match is None else int(match[1])


def save_checkpoint(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """
    :param folder: Where checkpoints are, which is created
    :param state: What ``run_state`` gave
    :param keep: How many stay, this one among them
    :return: Its file
    :raises OSError: if it can't be written; the others stay then
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint_{state['counters']['num_timesteps']}_steps.npz"
    for unfinished in folder.glob("checkpoint_*_steps.npz.*.unfinished"):  # of a run that was killed
        unfinished.unlink()
    save_npz(path, state)
    for old in checkpoints_in(folder)[:-keep]:
        if old != path:  # one of more steps is damaged
            old.unlink()
    return path


def load_checkpoint(folder: str | Path) -> dict[str, Any]:
    """
    :param folder: Where checkpoints are
    :return: What is in the newest one that is whole
    :raises FileNotFoundError: if there is none
    :raises ValueError: if all are damaged
    """
    paths = checkpoints_in(folder)
    if not paths:
        raise FileNotFoundError(f"There is no checkpoint in {folder}{', which must be their folder' * Path(folder).is_file()}")
    errors = []
    for path in reversed(paths):
        try:
            return load_npz(path)
        except (ValueError, OSError) as error:
            errors.append(str(error))
            warnings.warn(f"{error}; trying the checkpoint before")
    raise ValueError("; ".join(errors))
