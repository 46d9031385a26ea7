"""Validation of arguments, observations and rewards."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.utils import FloatSchedule

from sb3_muzero.common.numeric import is_integer, is_number

MAX_MAGNITUDE = 1e18
"""Largest absolute value of observations and rewards. Their squares must fit in float32."""

DISCRETE_SPACES = (spaces.Discrete, spaces.MultiDiscrete)
"""Spaces whose elements are class indices."""

COUNTABLE_SPACES = (*DISCRETE_SPACES, spaces.MultiBinary)
"""Spaces that are checked for membership."""

# Requirement in words, as a function, and the arguments it applies to
COUNTS = ("buffer_size", "batch_size", "n_steps", "num_simulations", "unroll_steps", "target_update_interval")
COEFFICIENTS = ("ent_coef", "vf_coef", "reward_coef", "consistency_coef")
ARGUMENT_RANGES: list[tuple[str, Callable[[Any], bool], tuple[str, ...]]] = [
    ("an integer of at least 1", lambda value: is_integer(value) and value >= 1, COUNTS),
    ("an integer of at least -1", lambda value: is_integer(value) and value >= -1, ("gradient_steps",)),
    ("at least 0", lambda value: is_number(value) and value >= 0, ("learning_starts", "exploration_steps_per_episode")),
    ("at least 0 and finite", lambda value: is_number(value) and 0 <= value < float("inf"), COEFFICIENTS),
    ("above 0", lambda value: is_number(value) and value > 0, ("n_steps_half_life", "max_grad_norm")),
    ("at least 1 and finite", lambda value: is_number(value) and 1 <= value < float("inf"), ("random_action_repeat",)),
    ("between 0 and 1", lambda value: is_number(value) and 0 <= value <= 1, ("gamma", "reanalyze_ratio", "tau")),
]
SCHEDULES = ("learning_rate", "exploration", "novelty_coef")
SETTINGS = [name for _, _, names in ARGUMENT_RANGES for name in names] + [*SCHEDULES, "train_freq"]
"""What is checked again where it was assigned after construction."""


def is_in_space(numbers: np.ndarray, space: spaces.Space | None = None) -> np.ndarray | np.bool_:
    """
    :param numbers: Observations or rewards, shape ``[..., *obs_shape]``
    :param space: Observation space
    :return: Which numbers are valid, same shape: class indices of a discrete space, zeros and ones of a MultiBinary one, else
        finite numbers up to ``MAX_MAGNITUDE``
    """
    if isinstance(space, DISCRETE_SPACES):
        num_classes = space.n if isinstance(space, spaces.Discrete) else space.nvec
        start = np.asarray(space.start, np.int64)  # start + num_classes can overflow the space's dtype
        return (start <= numbers) & (numbers < start + num_classes) & (numbers == np.floor(numbers))
    if isinstance(space, spaces.MultiBinary):
        return (numbers == 0) | (numbers == 1)
    return np.abs(numbers, dtype=np.float64) <= MAX_MAGNITUDE if numbers.dtype.kind == "f" else np.True_


def check_finite(what: str, numbers: Any, step: int, env: int | None = None, space: spaces.Space | None = None) -> None:
    """
    :param what: Name of the numbers in the error message
    :param numbers: Numbers of all environments, shape ``[n_envs, ...]``, or of environment ``env``; or a dictionary of arrays
    :param step: Number of environment steps so far
    :param env: Index of the environment, ``None`` for all
    :param space: Observation space, ``None`` for rewards
    :raises ValueError: for invalid numbers, see ``is_in_space``; the message names the environment and the step
    """
    if isinstance(numbers, dict):
        for key, part in numbers.items():
            check_finite(f"{what} {key!r}", part, step, env, space[key])  # type: ignore[index]
        return
    numbers = np.asarray(numbers)
    is_valid = is_in_space(numbers, space)
    if not is_valid.all():
        if env is None:
            env = int(np.flatnonzero(~is_valid.reshape(len(numbers), -1).all(axis=1))[0])
            numbers = numbers[env]
        if isinstance(space, COUNTABLE_SPACES):
            raise ValueError(f"Environment {env} returned {numbers} as {what} at step {step}, which is not in {space}")
        raise ValueError(f"Environment {env} returned a non-finite {what} (or beyond 1e18) at step {step}: {numbers}")


def check_integer(name: str, value: Any, least: int = 1) -> None:
    """
    :param name: Name of the argument
    :param value: Value of the argument
    :param least: Smallest allowed integer
    :raises ValueError: if the value is not an integer or too small
    """
    if not is_integer(value) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}")


def check_muzero_arguments(model: Any) -> None:
    """
    :param model: ``MuZero`` model
    :raises ValueError: for an invalid argument; the message names it, its value and the allowed values
    """
    if not hasattr(model, "observation_space"):
        raise ValueError(
            "`env` must be an environment or the id of one, got None: its spaces decide the networks. A model without "
            "environment is loaded from a file, with `MuZero.load(path)`"
        )
    for _, _, names in ARGUMENT_RANGES:
        for name in names:
            check_number(name, getattr(model, name))
    for name in SCHEDULES:
        check_schedule(name, getattr(model, name))
    if model.seed is not None:
        check_integer("seed", model.seed, 0)
    check_integer("stats_window_size", model._stats_window_size)
    given = model.train_freq
    frequency = given[0] if isinstance(given, tuple) and len(given) == 2 else given
    if not is_integer(frequency) or frequency < 1:  # SB3 checks the unit
        raise ValueError(f"`train_freq` must be an integer of at least 1, alone or in a tuple with its unit, got {given!r}")
    for name in ("policy_kwargs", "replay_buffer_kwargs"):
        if not isinstance(getattr(model, name), dict):
            raise ValueError(f"`{name}` must be a dictionary, got {getattr(model, name)!r}")
    least = model.n_envs * (model.unroll_steps + 1)
    if model.buffer_size < least:
        raise ValueError(
            f"`buffer_size` must hold a sequence of `unroll_steps` + 1 steps for each of {model.n_envs} environments, "
            f"at least {least}, got {model.buffer_size}"
        )


def check_number(name: str, value: Any) -> None:
    """
    :param name: Name of an argument in ``ARGUMENT_RANGES``
    :param value: Value of the argument
    :raises ValueError: if the value is not allowed
    """
    for requirement, is_allowed, names in ARGUMENT_RANGES:
        if name in names and not is_allowed(value):
            raise ValueError(f"`{name}` must be {requirement}, got {value!r}")


def check_schedule(name: str, value: Any) -> None:
    """
    :param name: Name of the argument
    :param value: Float, or function of the progress remaining (from 1 to 0)
    :raises ValueError: for another type, and for values that are negative or not finite
    """
    if not (callable(value) or (isinstance(value, int | float) and is_number(value))):
        raise ValueError(f"`{name}` must be a float or a function of the progress remaining, got {value!r}")
    for progress, setting in schedule_values(value):
        if not 0 <= setting < float("inf"):
            raise ValueError(f"`{name}` must be at least 0 and finite, got {setting} where {progress:.0%} remain")


def schedule_values(value: Any) -> list[tuple[float, float]]:
    """
    :param value: Float, or function of the progress remaining (from 1 to 0)
    :return: Progress remaining and value of the schedule, in steps of 1 %
    """
    schedule = FloatSchedule(value)
    return [(progress, schedule(progress)) for progress in np.linspace(1.0, 0.0, 101).tolist()]
