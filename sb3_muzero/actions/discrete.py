"""Discrete actions. Every action is a candidate in the search."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_muzero.search.checks import check_action_masks


class CategoricalPolicy:
    """
    Categorical policy distribution over all actions.

    :param logits: Policy logits, shape ``[..., num_actions]``
    :param action_masks: True for legal actions, shape ``[..., num_actions]``. By default all actions are legal
    """

    MASKED_LOGIT = -1e8  # finite, to avoid NaN gradients

    def __init__(self, logits: th.Tensor, action_masks: th.Tensor | None = None) -> None:
        if action_masks is not None:
            logits = logits.masked_fill(~action_masks, self.MASKED_LOGIT)
        self.log_probs = F.log_softmax(logits, dim=-1)

    def log_prob(self, candidates: th.Tensor | None = None) -> th.Tensor:
        """
        :param candidates: Action indices, shape ``[..., K]``, all actions by default
        :return: Log-probabilities, shape ``[..., K]``
        """
        return self.log_probs if candidates is None else self.log_probs.gather(-1, candidates)

    def entropy(self, weights: th.Tensor) -> th.Tensor:
        """
        :param weights: Weights, shape ``[...]``
        :return: Weighted entropy in nats, shape ``[...]``
        """
        return -(self.log_probs.exp() * self.log_probs * weights.unsqueeze(-1)).sum(-1)


class ActionTable(nn.Module):
    """
    Encode actions for the dynamics function, by table lookup.

    :param encodings: Encoding of each action, shape ``[num_actions, ...]``
    :param is_one_hot: Whether the encodings are one-hot vectors, which the compiled planner requires
    """

    encodings: th.Tensor

    def __init__(self, encodings: th.Tensor, is_one_hot: bool = False) -> None:
        super().__init__()
        self.register_buffer("encodings", encodings, persistent=False)
        self.is_one_hot = is_one_hot

    def forward(self, action: th.Tensor) -> th.Tensor:
        """
        :param action: Action indices, shape ``[B]``
        :return: Encoded actions, shape ``[B, ...]``
        """
        return self.encodings.index_select(0, action)


class DiscreteActions:
    """
    Discrete action space. Actions are represented by indices starting at 0. All actions are the candidates of every search, in
    their order: ``candidates`` of a search, of what is stored and of a batch is ``None``.

    :param space: Action space
    """

    shape: tuple[int, ...] = ()
    """Shape of one action."""
    dtype = np.int64

    def __init__(self, space: spaces.Discrete) -> None:
        self.space = space
        self.num_candidates = int(space.n)
        """Number of actions considered at each node of the search."""
        self.candidates = np.arange(self.num_candidates)
        """The candidates of every search, shape ``[num_candidates]``."""
        self.encoding_dim = int(space.n)
        """Size of an encoded action."""

    def encodings(self) -> th.Tensor:
        """:return: One-hot encoding of each action, shape ``[num_actions, encoding_dim]``"""
        return th.eye(self.encoding_dim)

    def make_encoder(self) -> ActionTable:
        """:return: Module that maps action indices to one-hot vectors"""
        return ActionTable(self.encodings(), is_one_hot=True)

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: Action indices, shape ``[...]``
        :return: Actions in the action space, shape ``[...]``
        """
        return actions + self.space.start

    def sample(self, shape: int | tuple[int, ...], action_masks: np.ndarray | None = None) -> np.ndarray:
        """
        Sample actions uniformly, with NumPy's global random number generator.

        :param shape: Shape of the result
        :param action_masks: True for legal actions, shape ``[*shape, num_actions]``. By default all actions are legal
        :return: Action indices
        """
        if action_masks is None:
            return np.random.randint(0, self.num_candidates, size=shape)
        return np.where(action_masks, np.random.rand(*action_masks.shape), -1.0).argmax(axis=-1)

    def is_legal(self, actions: np.ndarray, action_masks: np.ndarray) -> np.ndarray:
        """
        :param actions: Action indices, shape ``[B]``
        :param action_masks: True for legal actions, shape ``[B, num_actions]``
        :return: Whether each action is legal, shape ``[B]``
        """
        return np.take_along_axis(action_masks, actions[:, None], axis=1)[:, 0]

    def check(self, actions: Any, batch_size: int) -> np.ndarray:
        """
        :param actions: Action indices, one per environment
        :param batch_size: Number of environments
        :return: Action indices, shape ``[batch_size]``
        :raises ValueError: for an index out of range
        """
        actions = np.reshape(actions, batch_size)
        if not ((actions >= 0) & (actions < self.num_candidates)).all():
            raise ValueError(f"`action` must be indices from 0 to {self.num_candidates - 1}, got {actions}")
        return actions

    def check_masks(self, action_masks: Any, batch_size: int) -> np.ndarray:
        """
        :param action_masks: True (or 1) for legal actions, shape ``[num_actions]`` or ``[batch_size, num_actions]``
        :param batch_size: Number of observations
        :return: Action masks, bool, shape ``[batch_size, num_actions]``
        :raises ValueError: for another shape, entries other than 0 and 1, or a mask without a legal action
        """
        return check_action_masks(action_masks, batch_size, self.num_candidates)

    def distribution(self, logits: th.Tensor, action_masks: th.Tensor | None = None) -> CategoricalPolicy:
        """
        :param logits: Policy logits, shape ``[..., num_actions]``
        :param action_masks: True for legal actions, shape ``[..., num_actions]``. By default all actions are legal
        :return: Policy distribution
        """
        return CategoricalPolicy(logits, action_masks)


def make_actions(space: spaces.Space) -> DiscreteActions:
    """
    :param space: Action space
    :return: The corresponding actions object
    :raises ValueError: if the space is not supported
    """
    if not isinstance(space, spaces.Discrete):
        raise ValueError(f"The action space must be Discrete, got {space}")
    return DiscreteActions(space)
