"""Observation and action spaces that MuZero supports, and which wrapper makes another space one of these."""

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim

from sb3_muzero.common.validation import COUNTABLE_SPACES, MAX_MAGNITUDE

OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""Spaces of observations, and of the parts of a Dict."""

FLATTEN = "wrap each environment in `gymnasium.wrappers.FlattenObservation(env)` and use MlpPolicy"


def check_spaces(env: Any) -> None:
    """
    :param env: What a model is to learn from; nothing is checked where it has no spaces
    :raises ValueError: for an observation space that is not supported, and for an environment of PettingZoo
    :raises AssertionError: for an action space that is not supported, as SB3 does
    """
    space, action_space = (getattr(env, name, None) for name in ("observation_space", "action_space"))
    if callable(space):
        raise ValueError(
            f"`env` must be a Gymnasium environment, got {env}, whose agents have spaces of their own as in PettingZoo: "
            f"`sb3_muzero.games.adapters.from_pettingzoo(env)` makes a classic game for two players one; any other "
            f"environment needs a `gymnasium.Env` around it in which one agent acts"
        )
    if isinstance(space, spaces.Space):
        check_observation_space(space)
    if isinstance(action_space, spaces.Space):
        check_action_space(action_space)


def check_observation_space(space: spaces.Space) -> None:
    """
    :param space: Observation space
    :raises ValueError: if it is not supported; the message names the key and a wrapper that helps
    """
    parts = parts_of_space(space)
    for key, part in parts.items():
        if isinstance(space, spaces.Tuple) or not isinstance(part, OBSERVATION_SPACES):
            supported = ", ".join(supported.__name__ for supported in OBSERVATION_SPACES)
            given = f"{part} as {key!r}" if isinstance(space, spaces.Dict) else space
            raise ValueError(
                f"MuZero supports the observation spaces {supported} and a Dict of these (not nested), "
                f"got {given}: {_remedy(space)}"
            )
        if isinstance(space, spaces.Dict) and not (isinstance(key, str) and key):
            raise ValueError(f"The keys of a Dict observation space must be non-empty strings, got {key!r}: {FLATTEN}")
    if not parts or any(0 in (part.shape or ()) for part in parts.values()):
        raise ValueError(f"The observation space has no numbers: {space}")


def parts_of_space(space: spaces.Space) -> dict[Any, spaces.Space]:
    """
    :param space: Any space
    :return: The parts of a Dict or Tuple by their keys, otherwise the space itself
    """
    if isinstance(space, spaces.Tuple):
        return dict(enumerate(space))
    return dict(space.items()) if isinstance(space, spaces.Dict) else {"": space}


def _remedy(space: spaces.Space) -> str:
    """:return: How to make an observation space one that is supported"""
    parts = parts_of_space(space)
    flat: list[Hashable] = [key for key, part in parts.items() if _flattens(part)]
    kept = [key for key in flat if not isinstance(parts[key], spaces.Text)] or flat
    if _flattens(space) and len(kept) == len(parts):
        return FLATTEN
    if kept:
        policy = ", and use MultiInputPolicy" * isinstance(space, spaces.Dict)
        return f"wrap each environment in `gymnasium.wrappers.FilterObservation(env, {kept})`, which keeps only these{policy}"
    return (
        "its elements have no fixed size, so encode them as an array of your choice: wrap each environment in "
        "`gymnasium.wrappers.TransformObservation(env, encode, space)`, where `encode` returns that array and `space` is a Box"
    )


def _flattens(space: spaces.Space) -> bool:
    try:
        return flatdim(space) > 0
    except (NotImplementedError, ValueError):  # a class of spaces that Gymnasium does not know, and elements of any size
        return False


def check_action_space(space: spaces.Space) -> None:
    """
    :param space: Action space
    :raises AssertionError: unless it is Discrete, MultiDiscrete, MultiBinary with one axis, or a Box with finite bounds that
        differ; the message names a wrapper that makes it one of these
    """
    if not isinstance(space, (spaces.Box, *COUNTABLE_SPACES)):
        choose = "lambda action: choices[action], gymnasium.spaces.Discrete(len(choices))"
        raise AssertionError(
            f"MuZero only supports Box, Discrete, MultiDiscrete and MultiBinary action spaces, got {space}: wrap each "
            f"environment in `gymnasium.wrappers.TransformAction(env, {choose})` with a list `choices` of actions"
        )
    if 0 in (space.shape or ()):
        raise AssertionError(f"The action space has no numbers: {space}")
    if isinstance(space, spaces.MultiBinary) and len(space.shape) > 1:  # SB3's buffers do not take it
        flat = f"lambda action: np.reshape(action, {space.shape}), gymnasium.spaces.MultiBinary({math.prod(space.shape)})"
        raise AssertionError(
            f"MultiBinary action spaces must have one axis, got {space}: wrap each environment in "
            f"`gymnasium.wrappers.TransformAction(env, {flat})`"
        )
    if isinstance(space, spaces.Box):
        check_bounds(space)


def check_bounds(space: spaces.Box) -> None:
    """
    :param space: Action space
    :raises AssertionError: unless all bounds are finite and differ, and those of integers are at most 2**53 in size
    """
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    largest = MAX_MAGNITUDE if space.dtype.kind == "f" else 2**53
    is_bounded = np.abs(low) <= largest, np.abs(high) <= largest
    what = "MuZero scales Box actions to their bounds"
    if not np.all(is_bounded):
        low = np.where(is_bounded[0], low, np.where(is_bounded[1], high, 0) - 1)
        high = np.where(is_bounded[1], high, low + 2)
        bounds = [bound.flat[0] if np.ptp(bound) == 0 else f"np.array({bound.tolist()})" for bound in (low, high)]
        box = f"gymnasium.spaces.Box({bounds[0]}, {bounds[1]}, {space.shape}, np.{space.dtype})"
        raise AssertionError(
            f"{what}, which must be finite and at most {largest:g}, got {space}: wrap each environment in "
            f"`gymnasium.wrappers.TransformAction(env, lambda action: action, {box})` with bounds that suit the task"
        )
    if (low >= high).any():
        raise AssertionError(
            f"{what}, which must differ, got {space}: wrap each environment in "
            f"`gymnasium.wrappers.TransformAction(env, complete, space)`, where `complete` adds the components that are "
            f"constant and `space` is a Box of the others"
        )
