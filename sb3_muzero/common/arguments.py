"""What the arguments of ``MuZero``, and the observations of its environment, may be."""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.type_aliases import TrainFrequencyUnit
from stable_baselines3.common.utils import FloatSchedule

OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary, spaces.Dict)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


# What is allowed, in words and as a test, and for which arguments
ALLOWED: list[tuple[str, Callable[[Any], bool], tuple[str, ...]]] = [
    (
        "an integer of at least 1",
        lambda value: is_integer(value) and value >= 1,
        ("buffer_size", "batch_size", "n_steps", "num_simulations", "unroll_steps", "target_update_interval"),
    ),
    ("an integer of at least -1", lambda value: is_integer(value) and value >= -1, ("gradient_steps",)),
    ("at least 0", lambda value: is_number(value) and value >= 0, ("learning_starts", "opening_steps")),
    (
        "at least 0 and finite",
        lambda value: is_number(value) and 0 <= value < float("inf"),
        ("ent_coef", "vf_coef", "reward_coef", "consistency_coef"),
    ),
    ("above 0", lambda value: is_number(value) and value > 0, ("n_steps_half_life", "max_grad_norm")),
    ("at least 1 and finite", lambda value: is_number(value) and 1 <= value < float("inf"), ("action_persistence",)),
    ("between 0 and 1", lambda value: is_number(value) and 0 <= value <= 1, ("gamma", "reanalyze_ratio")),
    ("above 0 and at most 1", lambda value: is_number(value) and 0 < value <= 1, ("tau",)),
]


def check_number(name: str, value: Any) -> None:
    """
    :param name: An argument in ``ALLOWED``
    :param value: What was given
    :raises ValueError: naming the argument, what was given and what is allowed
    """
    for words, is_allowed, names in ALLOWED:
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
    for progress, setting in settings_on_the_way(value):
        if not 0 <= setting < float("inf"):
            raise ValueError(f"`{name}` must be at least 0 and finite, got {setting} where {progress:.0%} remain")


def settings_on_the_way(value: Any) -> list[tuple[float, float]]:
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
