"""What goes into a search and what comes out of it. ``B`` is the number of roots, ``A`` the number of actions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from sb3_muzero.search.tree import Tree

Array = np.ndarray | torch.Tensor


class RootOutput(NamedTuple):
    """
    What the model says about the states to plan from.

    A prior logit of minus infinity is an action of probability zero; each row needs at least one that is finite. No logit is
    above 1e30, and neither value nor, in a step, reward is larger in size.

    :param prior_logits: unnormalised log-probabilities of the policy. Shape ``[B, A]``.
    :param value: value of the state, in the units of the reward. Shape ``[B]``.
    :param latent: latent state. Shape ``[B, ...]``; ``recurrent_fn`` gets arrays of its kind (NumPy, torch) and device.
    """

    prior_logits: Array
    value: Array
    latent: Array


class RecurrentOutput(NamedTuple):
    """
    What the model says about one step from ``B`` latent states.

    :param reward: reward of the step. Shape ``[B]``.
    :param discount: factor from the value of the next state to the value of this one: gamma, 0 when the step ends the
        episode, negative when the next state belongs to the opponent; from -1 to 1. Shape ``[B]``.
    :param prior_logits: of the next state. Shape ``[B, A]``.
    :param value: of the next state. Shape ``[B]``.
    :param latent: next state. Shape ``[B, ...]``, as the root's.
    """

    reward: Array
    discount: Array
    prior_logits: Array
    value: Array
    latent: Array


RecurrentFn = Callable[[Any, Any], RecurrentOutput]
"""``recurrent_fn(latent [B, ...], action [B] int64) -> RecurrentOutput``."""


class SearchOutput(NamedTuple):
    """
    What a search found, as NumPy arrays.

    :param action: the action to play. Shape ``[B]``, int64.
    :param action_weights: the target for the policy; sums to 1. Shape ``[B, A]``, float32.
    :param visit_counts: of the root's actions; sums to the number of simulations. Shape ``[B, A]``, int32.
    :param qvalues: of the root's actions, in the units of the reward; 0 where unvisited. Shape ``[B, A]``, float32.
    :param value: of the root: the mean of its own evaluation and all simulated returns. Shape ``[B]``, float32.
    :param tree: everything the search saw.
    """

    action: np.ndarray
    action_weights: np.ndarray
    visit_counts: np.ndarray
    qvalues: np.ndarray
    value: np.ndarray
    tree: Tree

    @property
    def improved_value(self) -> np.ndarray:
        """Of the root, if its next action is one of ``action_weights`` among the visited ones. Shape ``[B]``, float32."""
        weights = (self.visit_counts > 0) * np.maximum(self.action_weights, np.finfo(np.float32).tiny)
        return (weights * self.qvalues).sum(axis=1) / weights.sum(axis=1)
