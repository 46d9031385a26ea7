"""What the algorithm needs to know about an action space."""

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_muzero.search.planner import Planner, PlannerSettings


class PolicyDistribution(Protocol):
    """Distribution over actions that the outputs of the policy head describe."""

    def log_prob(self, candidates: Any) -> th.Tensor:
        """
        :param candidates: Actions, shape ``[..., K, *action_shape]``; ``None`` for all actions of a Discrete space
        :return: Log-probabilities, of continuous actions log-densities, shape ``[..., K]``
        """

    def entropy(self, weights: th.Tensor) -> th.Tensor:
        """
        :param weights: Weights, shape ``[...]``
        :return: Weighted entropy in nats, shape ``[...]``
        """


class Actions(ABC):
    """
    An action space as the algorithm sees it: how actions are stored, encoded for the dynamics function, drawn and searched.

    :param space: Action space
    """

    shape: tuple[int, ...]
    """Shape of one action."""
    dtype: Any
    """Dtype of actions in the replay buffer."""
    num_candidates: int
    """Number of candidates that a search weighs at its root."""
    candidates: np.ndarray
    """Candidates of a step without search, in the dtype that they are stored with, shape ``[num_candidates, *shape]``."""
    has_fixed_candidates: bool
    """Whether all searches have the same candidates, which are then not stored."""
    encoding_dim: int
    """Size of an encoded action."""
    num_policy_outputs: int
    """Number of outputs of the policy head."""
    mask_dim: int
    """Length of an action mask."""

    def __init__(self, space: spaces.Space) -> None:
        self.space = space

    @abstractmethod
    def make_encoder(self) -> nn.Module:
        """:return: Module that encodes actions, shape ``[B, *shape]``, as vectors, shape ``[B, encoding_dim]``"""

    @abstractmethod
    def make_planner(self, settings: PlannerSettings) -> Planner:
        """
        :param settings: Settings of the searches
        :return: Planner for these actions
        """

    @abstractmethod
    def distribution(self, outputs: th.Tensor, action_masks: th.Tensor | None = None) -> PolicyDistribution:
        """
        :param outputs: Outputs of the policy head, shape ``[..., num_policy_outputs]``
        :param action_masks: True for legal actions, shape ``[..., mask_dim]``. By default all actions are legal
        :return: Policy distribution
        """

    @abstractmethod
    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: Actions, shape ``[..., *shape]``
        :return: The same as elements of the action space, shape ``[..., *space.shape]``
        """

    @abstractmethod
    def from_env(self, actions: np.ndarray) -> np.ndarray:
        """
        Inverse of ``to_env``.

        :param actions: Elements of the action space, shape ``[..., *space.shape]``
        :return: The same as actions, shape ``[..., *shape]``
        """

    @abstractmethod
    def sample(self, shape: int | tuple[int, ...], action_masks: np.ndarray | None = None) -> np.ndarray:
        """
        Sample actions uniformly, with NumPy's global random number generator.

        :param shape: Shape of the batch
        :param action_masks: True for legal actions, shape ``[*batch, mask_dim]``. By default all actions are legal
        :return: Actions, shape ``[*batch, *shape]``
        """

    @abstractmethod
    def is_legal(self, actions: np.ndarray, action_masks: np.ndarray) -> np.ndarray:
        """
        :param actions: Actions, shape ``[B, *shape]``
        :param action_masks: True for legal actions, shape ``[B, mask_dim]``
        :return: Whether each action is legal, shape ``[B]``
        """

    @abstractmethod
    def check(self, actions: Any, batch_size: int) -> np.ndarray:
        """
        :param actions: Actions, one per environment
        :param batch_size: Number of environments
        :return: Actions, shape ``[batch_size, *shape]``
        :raises ValueError: for an action out of range
        """

    @abstractmethod
    def check_masks(self, action_masks: Any, batch_size: int) -> np.ndarray:
        """
        :param action_masks: True (or 1) for legal actions, shape ``[mask_dim]`` or ``[batch_size, mask_dim]``
        :param batch_size: Number of observations
        :return: Action masks, bool, shape ``[batch_size, mask_dim]``
        :raises ValueError: for another shape, entries other than 0 and 1, or a mask without a legal action
        """
