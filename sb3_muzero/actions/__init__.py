"""Action spaces: encoding, policy distribution, sampling and masks of actions, candidates of searches."""

from typing import Any

from gymnasium import spaces

from sb3_muzero.actions.base import Actions, PolicyDistribution
from sb3_muzero.actions.discrete import ActionTable, CategoricalPolicy, DiscreteActions
from sb3_muzero.actions.sampled import BoxActions, CompositeActions, SampledActions

__all__ = [
    "ActionTable",
    "Actions",
    "BoxActions",
    "CategoricalPolicy",
    "CompositeActions",
    "DiscreteActions",
    "PolicyDistribution",
    "SampledActions",
    "make_actions",
]


def make_actions(space: spaces.Space, action_kwargs: dict[str, Any] | None = None) -> Actions:
    """
    :param space: Action space
    :param action_kwargs: Keyword arguments of ``BoxActions`` or ``CompositeActions``; with any of them, candidates are drawn
        for a Discrete space, too
    :return: The corresponding actions object
    :raises ValueError: if the space is not supported, or for an argument that it does not have
    """
    kwargs = action_kwargs or {}
    if not isinstance(kwargs, dict):
        raise ValueError(f"`action_kwargs` must be a dictionary, got {action_kwargs!r}")
    allowed = ["num_candidates", "num_inner_candidates", *["num_bins"] * isinstance(space, spaces.Box)]
    if unknown := sorted(kwargs.keys() - set(allowed)):
        raise ValueError(f"`action_kwargs` of {space} must be of {allowed}, got {unknown}")
    if isinstance(space, spaces.Discrete) and not kwargs:
        return DiscreteActions(space)
    if isinstance(space, spaces.Box):
        return BoxActions(space, **kwargs)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return CompositeActions(space, **kwargs)
    raise ValueError(f"The action space must be Box, Discrete, MultiDiscrete or MultiBinary, got {space}")
