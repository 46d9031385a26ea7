"""Settings and arrays that the kernels of a search work with."""

from typing import NamedTuple

import numpy as np

from sb3_muzero.search.backends.numba.simd import LANES

# Selection rules
GUMBEL_ROOT, GUMBEL_INTERIOR, PUCT = range(3)
# Policy targets
IMPROVED_POLICY, VISIT_FRACTIONS = range(2)
# Rules of the root and of interior nodes, and policy target, of Gumbel MuZero and of MuZero
GUMBEL, MUZERO = (GUMBEL_ROOT, GUMBEL_INTERIOR, IMPROVED_POLICY), (PUCT, PUCT, VISIT_FRACTIONS)
# What Q values are rescaled over
NODE_SCOPE, TREE_SCOPE = range(2)

MAX_VALUE = 1e30
"""Largest magnitude of rewards and values. Sums over all simulations stay within float32."""


class SearchSettings(NamedTuple):
    """
    Sizes, rules and constants of a search. A search is composed of a selection rule for each kind of node and a policy target.

    :param num_nodes: number of nodes of a tree, ``N + 1``.
    :param num_actions: number of actions ``A``.
    :param max_depth: maximum number of edges from the root to a leaf.
    :param root_rule: selection rule at the root: ``GUMBEL_ROOT`` or ``PUCT``.
    :param interior_rule: selection rule at decision nodes below the root: ``GUMBEL_INTERIOR`` or ``PUCT``.
    :param policy_target: ``IMPROVED_POLICY`` or ``VISIT_FRACTIONS``.
    :param qvalue_scope: what Q values are rescaled over, ``NODE_SCOPE`` or ``TREE_SCOPE``.
    :param min_qvalue_range: minimum range to divide Q values by, in units of reward.
    :param max_num_considered_actions: maximum number of actions that Gumbel MuZero considers at the root.
    :param value_scale: c_scale of Gumbel MuZero.
    :param maxvisit_init: c_visit of Gumbel MuZero.
    :param pb_c_init: c_1 of MuZero.
    :param pb_c_base: c_2 of MuZero.
    """

    num_nodes: int
    num_actions: int
    max_depth: int
    root_rule: int
    interior_rule: int
    policy_target: int
    qvalue_scope: int
    min_qvalue_range: float
    max_num_considered_actions: int = 0
    value_scale: float = 0.0
    maxvisit_init: float = 0.0
    pb_c_init: float = 0.0
    pb_c_base: float = 1.0


class Roots(NamedTuple):
    """
    Inputs and results of a search at the roots, as flat arrays.

    :param prior_logits: policy logits. Shape ``[B * A]``, float32.
    :param value: values. Shape ``[B]``, float32.
    :param action_masks: True for legal actions. Shape ``[B * A]``, bool.
    :param gumbel: Gumbel noise, empty for PUCT. Shape ``[B * A]``, float32.
    :param considered_visits: Sequential Halving for each number of considered actions, empty for PUCT.
        Shape ``[(M + 1) * N]``, int32.
    :param num_considered: number of considered actions, written by ``initialize_roots``. Shape ``[B]``, int64.
    :param action: actions selected by Gumbel MuZero, written by ``select_root_actions``. Shape ``[B]``, int64.
    :param action_weights: policy targets, written by ``select_root_actions``. Shape ``[B * A]``, float32.
    """

    prior_logits: np.ndarray
    value: np.ndarray
    action_masks: np.ndarray
    gumbel: np.ndarray
    considered_visits: np.ndarray
    num_considered: np.ndarray
    action: np.ndarray
    action_weights: np.ndarray


class Leaves(NamedTuple):
    """
    One simulation of ``L`` trees: the interface to the model.

    ``select_leaves`` writes ``parent``, ``action`` and ``node``. The model reads the first two and writes ``reward``,
    ``discount``, ``prior_logits`` and ``value``. ``expand_and_backup`` reads all of them.

    :param parent: node to step from, as an index in its tree. Shape ``[L]``, int64.
    :param action: action to take there. Shape ``[L]``, int64.
    :param node: node that the step leads to, as an index in its tree. Shape ``[L]``, int64.
    :param active: scratch for ``select_leaves``. Shape ``[L]``, int64.
    :param reward: reward of the step. Shape ``[L]``, float32.
    :param discount: discount of the step. Shape ``[L]``, float32.
    :param value: value of the node. Shape ``[L]``, float32.
    :param prior_logits: policy logits of the node. Shape ``[L, A]``, float32.
    :param scores: scratch for the selection rules. Shape ``[L, padded A]``, float32.
    """

    parent: np.ndarray
    action: np.ndarray
    node: np.ndarray
    active: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    value: np.ndarray
    prior_logits: np.ndarray
    scores: np.ndarray


def instantiate_roots(
    prior_logits: np.ndarray, value: np.ndarray, action_masks: np.ndarray, gumbel: np.ndarray, considered_visits: np.ndarray
) -> Roots:
    """
    :param prior_logits: shape ``[B, A]``.
    :param value: shape ``[B]``.
    :param action_masks: shape ``[B, A]``.
    :param gumbel: shape ``[B, A]``, or empty.
    :param considered_visits: shape ``[M + 1, N]``, or empty.
    :return: the roots, as copies: read-only arrays would have another Numba type and compile the kernels again.
    """
    inputs = (array.flatten() for array in (prior_logits, value, action_masks, gumbel, considered_visits))
    return Roots._make((*inputs, *np.empty((2, value.size), np.int64), np.empty(prior_logits.size, np.float32)))


def instantiate_leaves(size: int, num_actions: int) -> Leaves:
    """
    :param size: number of trees ``L``.
    :param num_actions: number of actions ``A``.
    :return: arrays for one simulation of each tree.
    """
    integers, numbers = np.zeros((4, size), np.int64), np.zeros((3, size), np.float32)
    prior_logits = np.zeros((size, num_actions), np.float32)
    scores = np.zeros((size, rounded_up(num_actions)), np.float32)
    return Leaves._make((*integers, *numbers, prior_logits, scores))


def rounded_up(width: int) -> int:
    """
    :param width: number of units.
    :return: the smallest multiple of ``LANES`` that is not less.
    """
    return -(-width // LANES) * LANES
