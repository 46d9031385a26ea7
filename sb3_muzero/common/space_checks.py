"""Observation and action spaces that MuZero supports, and which wrapper makes another space one of these."""

from collections.abc import Hashable
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim

OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
"""Spaces of observations, and of the parts of a Dict."""

FLATTEN = "wrap each environment in `gymnasium.wrappers.FlattenObservation(env)` and use MlpPolicy"

MAX_COMBINATIONS = 1_000
"""Largest number of joint actions for which the advice is to list all of them."""


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
    :raises AssertionError: unless it is Discrete; the message names a wrapper that makes it so
    """
    if not isinstance(space, spaces.Discrete):
        wrapper = _discretizing_wrapper(space)
        what = f"MuZero only supports Discrete action spaces, got {space}"
        raise AssertionError(f"{what}: wrap each environment in {wrapper} (Gymnasium 1.1 or later)")


def _discretizing_wrapper(space: spaces.Space) -> str:
    """:return: Call of a wrapper that makes an action space Discrete"""
    if isinstance(space, spaces.Box) and np.isfinite([space.low, space.high]).all():
        for bins in (11, 5, 3):
            if bins**space.low.size <= MAX_COMBINATIONS:
                return f"`gymnasium.wrappers.DiscretizeAction(env, bins={bins})`"
    choose, num_actions, note = "choices[action]", "len(choices)", " with a list `choices` of actions"
    if isinstance(space, spaces.MultiDiscrete | spaces.MultiBinary):
        sizes, start = np.ravel(getattr(space, "nvec", np.full(space.shape, 2))), np.asarray(getattr(space, "start", 0))
        if (num_combinations := sizes.prod(dtype=float)) <= MAX_COMBINATIONS:
            choose = f"np.reshape(np.unravel_index(action, {sizes.tolist()}), {space.shape})"
            choose += f" + np.array({start.tolist()})" * bool(start.any())
            num_actions, note = f"{num_combinations:.0f}", ""
    transform = f"lambda action: {choose}, gymnasium.spaces.Discrete({num_actions})"
    return f"`gymnasium.wrappers.TransformAction(env, {transform})`{note}"
