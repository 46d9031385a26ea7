"""Inputs and outputs of a search. ``B`` is the number of roots, ``A`` the number of actions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from sb3_muzero.search.tree import Tree

Array = np.ndarray | torch.Tensor


TINY = np.finfo(np.float32).tiny


class RootOutput(NamedTuple):
    """
    The model's output for the root states.

    A prior logit of minus infinity means an action of probability zero; each row needs at least one finite logit. Logits are
    at most 1e30, and so are the magnitudes of values and rewards.

    :param prior_logits: policy logits. Shape ``[B, A]``.
    :param value: values, in units of reward. Shape ``[B]``.
    :param latent: latent states: an array or tensor, or a nest of such in dictionaries, tuples and named tuples. Each leaf has
        the shape ``[B, ...]``. ``recurrent_fn`` gets latents of the same structure, kind (NumPy or PyTorch) and device.
    """

    prior_logits: Array
    value: Array
    latent: Any


class RecurrentOutput(NamedTuple):
    """
    The model's output for one step from ``B`` latent states.

    :param reward: rewards of the step. Shape ``[B]``.
    :param discount: factors from the value of the next state to the value of this one, from -1 to 1: gamma, 0 where the step
        ends the episode, negative where the opponent moves next. Shape ``[B]``.
    :param prior_logits: policy logits of the next states. Shape ``[B, A]``.
    :param value: values of the next states. Shape ``[B]``.
    :param latent: next latent states, nested as the root's. Shape ``[B, ...]``.
    """

    reward: Array
    discount: Array
    prior_logits: Array
    value: Array
    latent: Any


RecurrentFn = Callable[[Any, Any], RecurrentOutput]
"""``recurrent_fn(latent [B, ...], action [B] int64) -> RecurrentOutput``."""


class SearchOutput(NamedTuple):
    """
    Result of a search, as NumPy arrays.

    The policy target consists of candidates and their weights. Without ``candidates``, these are all actions in their order.

    :param action: selected actions, as indices of candidates. Shape ``[B]``, int64.
    :param action_weights: weights of the candidates in the policy target; sum to 1. Shape ``[B, A]``, float32.
    :param visit_counts: visits of the root's actions; sum to the number of simulations. Shape ``[B, A]``, int32.
    :param qvalues: Q values of the root's actions, in units of reward; 0 for unvisited actions. Shape ``[B, A]``, float32.
    :param value: mean over the root's visits: of its raw value and the returns of all simulations, including those of
        actions that were tried and dropped. See ``improved_value`` for the value of the policy. Shape ``[B]``, float32.
    :param tree: search trees.
    :param candidates: actions that were candidates at the root; None for all actions in their order. Shape ``[B, A, ...]``.
    :param node_candidates: the same of all nodes that were expanded; integers may be given as floats.
        Shape ``[B, N + 1, A, ...]``.
    """

    action: np.ndarray
    action_weights: np.ndarray
    visit_counts: np.ndarray
    qvalues: np.ndarray
    value: np.ndarray
    tree: Tree
    candidates: np.ndarray | None = None
    node_candidates: np.ndarray | None = None

    @property
    def improved_value(self) -> np.ndarray:
        """
        Value of the root under the improved policy: the mean of the visited actions' Q values, weighted by ``action_weights``.
        Shape ``[B]``, float32.
        """
        weights = (self.visit_counts > 0) * np.maximum(self.action_weights, TINY)
        return (weights * self.qvalues).sum(axis=1) / weights.sum(axis=1)

    @property
    def selected_actions(self) -> np.ndarray:
        """Selected actions themselves: indices where all actions are candidates. Shape ``[B, ...]``."""
        return self.action if self.candidates is None else self.candidates[np.arange(len(self.action)), self.action]
