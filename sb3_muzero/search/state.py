"""What the compiled functions of a search share: its constants, its roots, and the joint to the model."""

from typing import NamedTuple

import numpy as np

from sb3_muzero.search.backends.numba.simd import LANES

GUMBEL, PUCT = 0, 1
NODE_SCOPE, TREE_SCOPE = 0, 1
MAX_VALUE = 1e30
"""Of the sizes that rewards and values may have: float32 holds the sum of as many as there may be simulations."""


class SearchSettings(NamedTuple):
    """
    The sizes and constants of a search.

    :param num_nodes: nodes of a tree, ``N + 1``.
    :param num_actions: number of actions ``A``.
    :param rule: how actions are selected, ``GUMBEL`` or ``PUCT``.
    :param qvalue_scope: what Q values are normalised over, ``NODE_SCOPE`` or ``TREE_SCOPE``.
    :param max_depth: largest number of edges from the root to a leaf.
    :param min_qvalue_range: least range that Q values are divided by, in the units of the reward.
    :param max_num_considered_actions: most actions that the Gumbel root considers.
    :param value_scale: c_scale of Gumbel MuZero.
    :param maxvisit_init: c_visit of Gumbel MuZero.
    :param pb_c_init: c_1 of MuZero.
    :param pb_c_base: c_2 of MuZero.
    """

    num_nodes: int
    num_actions: int
    rule: int
    qvalue_scope: int
    max_depth: int
    min_qvalue_range: float
    max_num_considered_actions: int = 0
    value_scale: float = 0.0
    maxvisit_init: float = 0.0
    pb_c_init: float = 0.0
    pb_c_base: float = 1.0


class Roots(NamedTuple):
    """
    What is given at the roots, and what the search says of them in the end; flat arrays.

    :param prior_logits: of the policy. Shape ``[B * A]``, float32.
    :param value: of the states. Shape ``[B]``, float32.
    :param invalid: True for actions that may not be taken. Shape ``[B * A]``, bool.
    :param gumbel: noise of the Gumbel root. Shape ``[B * A]``, float32.
    :param considered_visits: Sequential Halving of the Gumbel root by the number of actions to consider.
        Shape ``[(M + 1) * N]``, int32.
    :param num_considered: how many that is, which ``initialize_roots`` writes. Shape ``[B]``, int64.
    :param action: the action to play, which ``select_root_actions`` writes. Shape ``[B]``, int64.
    :param action_weights: the policy target, which ``select_root_actions`` writes. Shape ``[B * A]``, float32.
    """

    prior_logits: np.ndarray
    value: np.ndarray
    invalid: np.ndarray
    gumbel: np.ndarray
    considered_visits: np.ndarray
    num_considered: np.ndarray
    action: np.ndarray
    action_weights: np.ndarray


class Leaves(NamedTuple):
    """
    Where the current simulation ends in ``L`` trees, and what the model says about it: the joint to the model.

    ``select_leaves`` writes the first three, the model reads ``parent`` and ``action`` and writes the next four,
    ``expand_and_backup`` reads all.

    :param parent: node to step from, counted within its tree. Shape ``[L]``, int64.
    :param action: action to take there. Shape ``[L]``, int64.
    :param node: node that the step leads to, counted within its tree. Shape ``[L]``, int64.
    :param reward: of the step. Shape ``[L]``, float32.
    :param discount: of the step. Shape ``[L]``, float32.
    :param prior_logits: at the node. Shape ``[L, A]``, float32.
    :param value: of the node. Shape ``[L]``, float32.
    :param scores: scratch of the selection rules. Shape ``[L, padded A]``, float32.
    :param active: scratch of ``select_leaves``. Shape ``[L]``, int64.
    """

    parent: np.ndarray
    action: np.ndarray
    node: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    prior_logits: np.ndarray
    value: np.ndarray
    scores: np.ndarray
    active: np.ndarray


def instantiate_roots(
    prior_logits: np.ndarray, value: np.ndarray, invalid: np.ndarray, gumbel: np.ndarray, considered_visits: np.ndarray
) -> Roots:
    """
    :param prior_logits: shape ``[B, A]``.
    :param value: shape ``[B]``.
    :param invalid: shape ``[B, A]``.
    :param gumbel: shape ``[B, A]``, or empty.
    :param considered_visits: shape ``[M + 1, N]``, or empty.
    :return: copies (read-only arrays would be another type, to compile for) with room for what the search says.
    """
    return Roots(
        prior_logits=prior_logits.flatten(),
        value=value.flatten(),
        invalid=invalid.flatten(),
        gumbel=gumbel.flatten(),
        considered_visits=considered_visits.flatten(),
        num_considered=np.empty(value.size, np.int64),
        action=np.empty(value.size, np.int64),
        action_weights=np.empty(prior_logits.size, np.float32),
    )


def instantiate_leaves(size: int, num_actions: int) -> Leaves:
    """
    :param size: number of trees ``L``.
    :param num_actions: number of actions ``A``.
    :return: room for one simulation of each.
    """
    return Leaves(
        parent=np.zeros(size, np.int64),
        action=np.zeros(size, np.int64),
        node=np.zeros(size, np.int64),
        reward=np.zeros(size, np.float32),
        discount=np.zeros(size, np.float32),
        prior_logits=np.zeros((size, num_actions), np.float32),
        value=np.zeros(size, np.float32),
        scores=np.zeros((size, -(-num_actions // LANES) * LANES), np.float32),
        active=np.zeros(size, np.int64),
    )
