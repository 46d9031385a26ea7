"""What environments say must be numbers to learn from."""

from typing import Any

import numpy as np
from gymnasium import spaces

LARGEST = 1e18
"""The model computes in float32, and variances are squares."""

CLASSES = (spaces.Discrete, spaces.MultiDiscrete)
"""Spaces whose numbers are indices."""


def usable(numbers: np.ndarray, space: spaces.Space | None = None) -> np.ndarray | np.bool_:
    """
    :param numbers: Observations or rewards, shape ``[..., *obs_shape]``
    :param space: What observations are to be of
    :return: Which numbers can be learned from, those that are finite and of reasonable size, and classes that there are
    """
    if isinstance(space, CLASSES):
        num_classes = space.n if isinstance(space, spaces.Discrete) else space.nvec
        start = np.asarray(space.start, np.int64)  # dtypes may be too small for what comes behind the last class
        return (start <= numbers) & (numbers < start + num_classes) & (numbers == np.floor(numbers))
    return np.abs(numbers, dtype=np.float64) <= LARGEST if numbers.dtype.kind == "f" else np.True_


def check_usable(what: str, numbers: Any, step: int, env: int | None = None, space: spaces.Space | None = None) -> None:
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
            check_usable(f"{what} {key!r}", part, step, env, space[key])  # type: ignore[index]
        return
    numbers = np.asarray(numbers)
    are_usable = usable(numbers, space)
    if not are_usable.all():
        if env is None:
            env = int(np.flatnonzero(~are_usable.reshape(len(numbers), -1).all(axis=1))[0])
            numbers = numbers[env]
        if isinstance(space, CLASSES):
            raise ValueError(f"Environment {env} gave {numbers} as {what} at step {step}, which is not of {space}")
        raise ValueError(f"Environment {env} gave a non-finite {what} (or beyond 1e18) at step {step}: {numbers}")
