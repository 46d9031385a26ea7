"""Discrete actions. Every action is a candidate in the search."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn
from torch.nn import functional as F

from sb3_muzero.actions.base import Actions
from sb3_muzero.search.checks import check_action_masks
from sb3_muzero.search.planner import Planner, PlannerSettings


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
        :param action: Action indices, shape ``[B]`` or ``[B, 1]``
        :return: Encoded actions, shape ``[B, ...]``
        """
        return self.encodings.index_select(0, action.flatten())


class DiscreteActions(Actions):
    """
    Discrete action space. Actions are represented by indices starting at 0. All actions are the candidates of every search, in
    their order: ``candidates`` of a search, of what is stored and of a batch is ``None``.

    :param space: Action space
    """

    shape = ()
    dtype = np.int64
    has_fixed_candidates = True

    def __init__(self, space: spaces.Discrete) -> None:
        super().__init__(space)
        self.start = space.start
        self.num_candidates = self.encoding_dim = self.num_policy_outputs = self.mask_dim = int(space.n)
        self.candidates = np.arange(self.num_candidates)

    def encodings(self) -> th.Tensor:
        """:return: One-hot encoding of each action, shape ``[num_actions, encoding_dim]``"""
        return th.eye(self.encoding_dim)

    def make_encoder(self) -> ActionTable:
        return ActionTable(self.encodings(), is_one_hot=True)

    def make_planner(self, settings: PlannerSettings) -> Planner:
        return Planner(settings)

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        return actions + self.start

    def from_env(self, actions: np.ndarray) -> np.ndarray:
        return actions - self.start

    def sample(self, shape: int | tuple[int, ...], action_masks: np.ndarray | None = None) -> np.ndarray:
        if action_masks is None:
            return np.random.randint(0, self.num_candidates, size=shape)
        return np.where(action_masks, np.random.rand(*action_masks.shape), -1.0).argmax(axis=-1)

    def is_legal(self, actions: np.ndarray, action_masks: np.ndarray) -> np.ndarray:
        return np.take_along_axis(action_masks, actions[:, None], axis=1)[:, 0]

    def check(self, actions: Any, batch_size: int) -> np.ndarray:
        actions = np.reshape(actions, batch_size)
        if not ((actions >= 0) & (actions < self.num_candidates)).all():
            raise ValueError(f"`action` must be indices from 0 to {self.num_candidates - 1}, got {actions}")
        return actions

    def check_masks(self, action_masks: Any, batch_size: int) -> np.ndarray:
        return check_action_masks(action_masks, batch_size, self.num_candidates)

    def distribution(self, outputs: th.Tensor, action_masks: th.Tensor | None = None) -> CategoricalPolicy:
        return CategoricalPolicy(outputs, action_masks)
