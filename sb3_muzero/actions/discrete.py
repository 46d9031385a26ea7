"""Actions of a Discrete space: every action is a candidate of every search."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_muzero.search.checks import check_action_masks


class CategoricalPolicy:
    """
    Distribution over all actions that the policy head predicts.

    :param logits: Policy logits, shape ``[..., num_actions]``
    :param action_masks: True for legal actions, shape ``[..., num_actions]``; all by default
    """

    MASKED_LOGIT = -1e8  # finite, so that gradients are

    def __init__(self, logits: th.Tensor, action_masks: th.Tensor | None = None) -> None:
        if action_masks is not None:
            logits = logits.masked_fill(~action_masks, self.MASKED_LOGIT)
        self.log_probs = F.log_softmax(logits, dim=-1)

    def log_prob(self, candidates: th.Tensor | None = None) -> th.Tensor:
        """
        :param candidates: Indices of actions, shape ``[..., K]``; all actions in their order by default
        :return: Log-probabilities, shape ``[..., K]``
        """
        return self.log_probs if candidates is None else self.log_probs.gather(-1, candidates)

    def entropy(self, weights: th.Tensor) -> th.Tensor:
        """
        :param weights: Factors of the entropy, shape ``[...]``
        :return: Weighted entropy in nats, shape ``[...]``
        """
        return -(self.log_probs.exp() * self.log_probs * weights.unsqueeze(-1)).sum(-1)


class ActionTable(nn.Module):
    """
    Encodes actions for the dynamics: looks each index up in a table.

    :param encodings: The encoding of each action, shape ``[num_actions, ...]``
    :param is_one_hot: Whether these are one-hot vectors, which the compiled planner supports
    """

    encodings: th.Tensor

    def __init__(self, encodings: th.Tensor, is_one_hot: bool = False) -> None:
        super().__init__()
        self.register_buffer("encodings", encodings, persistent=False)
        self.is_one_hot = is_one_hot

    def forward(self, action: th.Tensor) -> th.Tensor:
        """
        :param action: Indices, shape ``[B]``
        :return: Encodings, shape ``[B, ...]``
        """
        return self.encodings.index_select(0, action)


class DiscreteActions:
    """
    Everything that depends on the action space. Inside of the package an action is its index, counted from 0.

    :param space: Action space
    """

    shape: tuple[int, ...] = ()
    """Shape of one action."""
    dtype = np.int64

    def __init__(self, space: spaces.Discrete) -> None:
        self.space = space
        self.num_candidates = int(space.n)
        """Actions that a search considers at each node: all of them."""
        self.encoding_dim = int(space.n)
        """Size of an action's encoding for the dynamics."""

    def encodings(self) -> th.Tensor:
        """:return: The encoding of each action, one-hot, shape ``[num_actions, encoding_dim]``"""
        return th.eye(self.encoding_dim)

    def make_encoder(self) -> "ActionTable":
        """:return: Module from action indices to what the dynamics get, one-hot vectors"""
        return ActionTable(self.encodings(), is_one_hot=True)

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: Indices, shape ``[...]``
        :return: What the environment calls these actions, shape ``[...]``
        """
        return actions + self.space.start

    def sample(self, shape: int | tuple[int, ...], action_masks: np.ndarray | None = None) -> np.ndarray:
        """
        Draw actions uniformly, from NumPy's global generator.

        :param shape: Shape of the result
        :param action_masks: True for legal actions, shape ``[*shape, num_actions]``; all by default
        :return: Indices
        """
        if action_masks is None:
            return np.random.randint(0, self.num_candidates, size=shape)
        return np.where(action_masks, np.random.rand(*action_masks.shape), -1.0).argmax(axis=-1)

    def is_legal(self, actions: np.ndarray, action_masks: np.ndarray) -> np.ndarray:
        """
        :param actions: Indices, shape ``[B]``
        :param action_masks: True for legal actions, shape ``[B, num_actions]``
        :return: Whether each action is legal, shape ``[B]``
        """
        return np.take_along_axis(action_masks, actions[:, None], axis=1)[:, 0]

    def check(self, actions: Any, batch_size: int) -> np.ndarray:
        """
        :param actions: Indices of one action per environment
        :param batch_size: Number of environments
        :return: The indices, shape ``[batch_size]``
        :raises ValueError: for indices that are not in the space
        """
        actions = np.reshape(actions, batch_size)
        if not ((actions >= 0) & (actions < self.num_candidates)).all():
            raise ValueError(f"`action` must be indices from 0 to {self.num_candidates - 1}, got {actions}")
        return actions

    def check_masks(self, action_masks: Any, batch_size: int) -> np.ndarray:
        """
        :param action_masks: True (or 1) for legal actions, in sb3-contrib's shapes
        :param batch_size: Number of observations
        :return: The masks, shape ``[batch_size, num_actions]``, bool
        :raises ValueError: for masks of another shape, other entries, or without any legal action
        """
        return check_action_masks(action_masks, batch_size, self.num_candidates)

    def distribution(self, logits: th.Tensor, action_masks: th.Tensor | None = None) -> CategoricalPolicy:
        """
        :param logits: Output of the policy head, shape ``[..., num_actions]``
        :param action_masks: True for legal actions, shape ``[..., num_actions]``; all by default
        :return: The distribution
        """
        return CategoricalPolicy(logits, action_masks)


def make_actions(space: spaces.Space) -> DiscreteActions:
    """
    :param space: Action space
    :return: What depends on it
    :raises ValueError: for a space that is not supported
    """
    if not isinstance(space, spaces.Discrete):
        raise ValueError(f"The action space must be Discrete, got {space}")
    return DiscreteActions(space)
