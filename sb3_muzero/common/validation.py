"""Validation of arguments, of observation spaces, and of what environments return."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.utils import FloatSchedule

from sb3_muzero.common.numeric import is_integer, is_number

MAX_MAGNITUDE = 1e18
"""The model computes in float32, and variances are squares."""

CLASSES = (spaces.Discrete, spaces.MultiDiscrete)
"""Spaces whose numbers are indices."""


def is_in_space(numbers: np.ndarray, space: spaces.Space | None = None) -> np.ndarray | np.bool_:
    """
    :param numbers: Observations or rewards, shape ``[..., *obs_shape]``
    :param space: What observations are to be of
    :return: Which numbers can be learned from, those that are finite and of reasonable size, and classes that there are
    """
    if isinstance(space, CLASSES):
        num_classes = space.n if isinstance(space, spaces.Discrete) else space.nvec
        start = np.asarray(space.start, np.int64)  # dtypes may be too small for what comes behind the last class
        return (start <= numbers) & (numbers < start + num_classes) & (numbers == np.floor(numbers))
    return np.abs(numbers, dtype=np.float64) <= MAX_MAGNITUDE if numbers.dtype.kind == "f" else np.True_


def check_finite(what: str, numbers: Any, step: int, env: int | None = None, space: spaces.Space | None = None) -> None:
    """
    :param what: What the numbers are called
    :param numbers: Of all environments, shape ``[n_envs, ...]``, a dictionary of such, or of the one environment ``env``
    :param step: Environment steps so far
    :param env: The environment
    :param space: What observations are to be of, not given for rewards
    :raises ValueError: naming environment and step, before anything that can't be learned from is stored
    """
    if isinstance(numbers, dict):
        for key, part in numbers.items():
            check_finite(f"{what} {key!r}", part, step, env, space[key])  # type: ignore[index]
        return
    numbers = np.asarray(numbers)
    are_usable = is_in_space(numbers, space)
    if not are_usable.all():
        if env is None:
            env = int(np.flatnonzero(~are_usable.reshape(len(numbers), -1).all(axis=1))[0])
            numbers = numbers[env]
        if isinstance(space, CLASSES):
            raise ValueError(f"Environment {env} gave {numbers} as {what} at step {step}, which is not of {space}")
        raise ValueError(f"Environment {env} gave a non-finite {what} (or beyond 1e18) at step {step}: {numbers}")


OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Dict)


def check_integer(name: str, value: Any, least: int = 1) -> None:
    """
    :param name: An argument
    :param value: What was given
    :param least: The smallest integer allowed
    :raises ValueError: naming the argument, what was given and what is allowed
    """
    if not is_integer(value) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}")


# What is allowed, in words and as a test, and for which arguments
ARGUMENT_RANGES: list[tuple[str, Callable[[Any], bool], tuple[str, ...]]] = [
    (
        "an integer of at least 1",
        lambda value: is_integer(value) and value >= 1,
        ("buffer_size", "batch_size", "n_steps", "num_simulations", "unroll_steps", "target_update_interval"),
    ),
    ("an integer of at least -1", lambda value: is_integer(value) and value >= -1, ("gradient_steps",)),
    ("at least 0", lambda value: is_number(value) and value >= 0, ("learning_starts", "exploration_steps_per_episode")),
    (
        "at least 0 and finite",
        lambda value: is_number(value) and 0 <= value < float("inf"),
        ("ent_coef", "vf_coef", "reward_coef", "consistency_coef"),
    ),
    ("above 0", lambda value: is_number(value) and value > 0, ("n_steps_half_life", "max_grad_norm")),
    ("at least 1 and finite", lambda value: is_number(value) and 1 <= value < float("inf"), ("random_action_repeat",)),
    ("between 0 and 1", lambda value: is_number(value) and 0 <= value <= 1, ("gamma", "reanalyze_ratio", "tau")),
]
SCHEDULES = ("learning_rate", "exploration", "novelty_coef")
SETTINGS = [name for _, _, names in ARGUMENT_RANGES for name in names] + [*SCHEDULES, "train_freq"]
"""What is checked again where it was assigned after construction."""


def check_muzero_arguments(model: Any) -> None:
    """
    :param model: A ``MuZero``
    :raises ValueError: naming the argument, what was given and what is allowed
    """
    for _, _, names in ARGUMENT_RANGES:
        for name in names:
            check_number(name, getattr(model, name))
    for name in SCHEDULES:
        check_schedule(name, getattr(model, name))
    check_train_freq(model.train_freq)
    for name in ("policy_kwargs", "replay_buffer_kwargs"):
        if not isinstance(getattr(model, name), dict):
            raise ValueError(f"`{name}` must be a dictionary, got {getattr(model, name)!r}")
    check_observation_space(model.observation_space)
    least = model.n_envs * (model.unroll_steps + 1)
    if model.buffer_size < least:
        raise ValueError(
            f"`buffer_size` must hold a sequence of `unroll_steps` + 1 steps for each of {model.n_envs} environments, "
            f"at least {least}, got {model.buffer_size}"
        )


def check_number(name: str, value: Any) -> None:
    """
    :param name: An argument in ``ARGUMENT_RANGES``
    :param value: What was given
    :raises ValueError: naming the argument, what was given and what is allowed
    """
    for words, is_allowed, names in ARGUMENT_RANGES:
        if name in names and not is_allowed(value):
            raise ValueError(f"`{name}` must be {words}, got {value!r}")


def check_schedule(name: str, value: Any) -> None:
    """
    :param name: An argument that is a float or a function of the progress remaining
    :param value: What was given
    :raises ValueError: naming the argument, what was given and what is allowed
    """
    if not (callable(value) or (isinstance(value, int | float) and is_number(value))):
        raise ValueError(f"`{name}` must be a float or a function of the progress remaining, got {value!r}")
    for progress, setting in schedule_values(value):
        if not 0 <= setting < float("inf"):
            raise ValueError(f"`{name}` must be at least 0 and finite, got {setting} where {progress:.0%} remain")


def schedule_values(value: Any) -> list[tuple[float, float]]:
    """
    :param value: A float or a function of the progress remaining
    :return: The progress remaining and what the value is there, for each percent from 1 to 0
    """
    schedule = FloatSchedule(value)
    return [(progress, schedule(progress)) for progress in np.linspace(1.0, 0.0, 101).tolist()]


def check_train_freq(value: Any) -> None:
    """
    :param value: The argument ``train_freq``
    :raises ValueError: saying what was given and what is allowed
    """
    frequency, unit = value if isinstance(value, tuple) and len(value) == 2 else (value, "step")
    is_unit = unit in ("step", "episode", *TrainFrequencyUnit)
    if not (isinstance(frequency, int) and is_integer(frequency) and frequency >= 1 and is_unit):
        raise ValueError(
            f'`train_freq` must be an integer of at least 1, alone or in a tuple with "step" or "episode", got {value!r}'
        )


def check_observation_space(space: spaces.Space) -> None:
    """
    :param space: Observation space
    :raises ValueError: saying what it must be
    """
    if not isinstance(space, OBSERVATION_SPACES):
        supported = ", ".join(supported.__name__ for supported in OBSERVATION_SPACES)
        raise ValueError(f"MuZero supports the observation spaces {supported}, got {space}: try FlattenObservation")
    if isinstance(space, spaces.Dict):
        for key, part in space.items():
            if isinstance(part, spaces.Dict):
                raise ValueError(f"Nested observation spaces are not supported: {key!r} is a Dict; flatten it")
            check_observation_space(part)
        if len(space) == 0:
            raise ValueError("The observation space has no parts, and nothing to see in it")
    elif 0 in (space.shape or ()):
        raise ValueError(f"The observation space has no numbers, and nothing to see in it: {space}")
