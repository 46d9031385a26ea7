"""
The rules by which a search selects actions, and the Q transforms that they use.

The trees are flat arrays (``flatten``), so that one index serves all arrays: a ``node`` is an index into ``[B * (N + 1)]``, an
``edge`` into ``[B * (N + 1) * A]``, and a ``row`` is the index of a root.
"""

import numpy as np

from sb3_muzero.common.jit import njit_inline
from sb3_muzero.search.backends.numba.simd import (
    EXP_LOW,
    FLOAT_BYTES,
    LANES_BYTES,
    exponential,
    load,
    splat,
    store,
    total,
    where_positive,
)
from sb3_muzero.search.state import GUMBEL_ROOT, NODE_SCOPE, PUCT, TREE_SCOPE, Roots, SearchSettings
from sb3_muzero.search.tree import ROOT_INDEX, UNVISITED, Tree

ZERO, ONE, INFINITY = np.float32(0.0), np.float32(1.0), np.float32(np.inf)
LOWEST_ROOT_SCORE = np.float32(-1e9)
TINY = np.finfo(np.float32).tiny


@njit_inline
def exponentiate(logits: np.ndarray, num_actions: int, largest: float) -> float:
    """
    Replace logits, of which at least one is finite, by unnormalised softmax weights.

    :param logits: logits, replaced in place. Shape ``[padded A]``, float32.
    :param num_actions: number of logits; the padding becomes 0.
    :param largest: the largest of the logits.
    :return: the sum of the weights.
    """
    for action in range(num_actions, logits.size):
        logits[action] = -np.inf
    start = logits.ctypes.data
    sums = splat(ZERO)
    for address in range(start, start + logits.size * FLOAT_BYTES, LANES_BYTES):
        shifted = load(address) - splat(largest)
        weights = where_positive(splat(EXP_LOW) - shifted, splat(ZERO), exponential(shifted))
        store(address, weights)
        sums = sums + weights
    return total(sums)


@njit_inline
def mixed_value(tree: Tree, num_actions: int, node: int) -> float:
    """v_mix of Gumbel MuZero, Eq. 33: mixes the raw value with the prior-weighted Q values of the visited actions."""
    sum_visits = np.int32(0)
    sum_probs = weighted_qvalues = ZERO
    for edge in range(node * num_actions, (node + 1) * num_actions):
        visits = tree.children_visits[edge]
        if visits > 0:
            prob = max(TINY, tree.children_prior_probs[edge])
            sum_visits += visits
            sum_probs += prob
            weighted_qvalues += prob * tree.children_qvalues[edge]
    raw_value = tree.raw_values[node]
    if sum_visits == 0:
        return raw_value
    count = np.float32(sum_visits)
    share = ONE / (count + ONE)
    return raw_value * share + weighted_qvalues / sum_probs * (count * share)


@njit_inline
def qtransform_completed_by_mix_value(tree: Tree, settings: SearchSettings, row: int, node: int, out: np.ndarray) -> None:
    """
    sigma(completed Q) of Gumbel MuZero, Eqs. 8 and 10: completes Q values by the mixed value and rescales them to [0, 1].
    What is no action has no share in their range.

    :param out: receives the transformed Q values. Shape ``[padded A]``.
    """
    num_actions = settings.num_actions
    edges = node * num_actions
    max_visits, has_unvisited = np.int32(0), False
    low, high = INFINITY, -INFINITY
    for action in range(num_actions):
        visits = tree.children_visits[edges + action]
        if visits > 0:
            max_visits = max(max_visits, visits)
            out[action] = tree.children_qvalues[edges + action]
            low, high = min(low, out[action]), max(high, out[action])
        elif tree.children_index[edges + action] == UNVISITED:
            has_unvisited = True
    unvisited_value = ZERO
    if has_unvisited:
        unvisited_value = mixed_value(tree, num_actions, node)
        low, high = min(low, unvisited_value), max(high, unvisited_value)
    for action in range(num_actions):
        if tree.children_visits[edges + action] == 0:
            out[action] = unvisited_value
    if settings.qvalue_scope == TREE_SCOPE:
        low, high = tree.min_qvalue[row], tree.max_qvalue[row]
    scale = ONE / max(high - low, np.float32(settings.min_qvalue_range))
    visit_scale = np.float32((settings.maxvisit_init + max_visits) * settings.value_scale)
    for action in range(num_actions):
        out[action] = visit_scale * min(max((out[action] - low) * scale, ZERO), ONE)


@njit_inline
def masked_argmax(scores: np.ndarray, num_actions: int, action_masks: np.ndarray, first: int) -> int:
    """Lowest index of the highest score among the legal actions; always a valid index, even for NaN."""
    best = -1
    for action in range(num_actions):
        if action_masks[first + action] and (best < 0 or scores[action] > scores[best]):
            best = action
    return max(best, 0)


@njit_inline
def gumbel_root_action(
    tree: Tree, roots: Roots, settings: SearchSettings, row: int, considered_visit: int, scores: np.ndarray
) -> int:
    """``GUMBEL_ROOT``: argmax of g + logits + sigma(Q) over the actions with so many visits, Algorithm 2, line 5."""
    num_actions = settings.num_actions
    node = row * settings.num_nodes + ROOT_INDEX
    qtransform_completed_by_mix_value(tree, settings, row, node, scores)
    edges, noises = node * num_actions, row * num_actions
    largest = -INFINITY
    for action in range(num_actions):
        largest = max(largest, tree.children_prior_logits[edges + action])
    for action in range(num_actions):
        score = roots.gumbel[noises + action] + (tree.children_prior_logits[edges + action] - largest) + scores[action]
        is_considered = tree.children_visits[edges + action] == considered_visit
        scores[action] = max(LOWEST_ROOT_SCORE, score) if is_considered else -INFINITY
    return masked_argmax(scores, num_actions, roots.action_masks, noises)


@njit_inline
def improved_policy(tree: Tree, settings: SearchSettings, row: int, node: int, out: np.ndarray) -> float:
    """
    pi' = softmax(logits + sigma(completed Q)), Gumbel MuZero, Eq. 11.

    :param out: receives the unnormalised policy. Shape ``[padded A]``.
    :return: the sum to divide it by.
    """
    num_actions = settings.num_actions
    qtransform_completed_by_mix_value(tree, settings, row, node, out)
    edges = node * num_actions
    largest = -INFINITY
    for action in range(num_actions):
        out[action] += tree.children_prior_logits[edges + action]
        largest = max(largest, out[action])
    return exponentiate(out, num_actions, largest)


@njit_inline
def gumbel_interior_action(tree: Tree, settings: SearchSettings, row: int, node: int, scores: np.ndarray) -> int:
    """``GUMBEL_INTERIOR``: argmax of pi' - N / (1 + sum N), Gumbel MuZero, Eq. 14."""
    factor = improved_policy(tree, settings, row, node, scores)
    num_actions = settings.num_actions
    edges = node * num_actions
    sum_visits = np.int32(1)
    for edge in range(edges, edges + num_actions):
        sum_visits += tree.children_visits[edge]
    # Both terms multiplied by both denominators
    best, best_score = 0, -INFINITY
    for action in range(num_actions):
        visits = np.float32(tree.children_visits[edges + action])
        score = scores[action] * np.float32(sum_visits) - visits * factor
        if score > best_score:
            best, best_score = action, score
    return best


@njit_inline
def puct_action(tree: Tree, roots: Roots, settings: SearchSettings, row: int, node: int, is_root: bool) -> int:
    """
    ``PUCT``: argmax of the upper confidence bound, MuZero, Eq. 2. A node's own evaluation counts as a visit.

    Q values are rescaled as in Eq. 5, over the whole tree or over the node's value and its visited actions. Unvisited actions
    have a Q value of 0.
    """
    num_actions = settings.num_actions
    edges = node * num_actions
    low, high = tree.min_qvalue[row], tree.max_qvalue[row]
    if settings.qvalue_scope == NODE_SCOPE:
        low = high = tree.node_values[node]
        for edge in range(edges, edges + num_actions):
            if tree.children_visits[edge] > 0:
                low, high = min(low, tree.children_qvalues[edge]), max(high, tree.children_qvalues[edge])
    scale = ONE / max(high - low, np.float32(settings.min_qvalue_range))
    node_visits = np.float64(tree.node_visits[node])
    exploration = settings.pb_c_init + np.log((node_visits + settings.pb_c_base + 1.0) / settings.pb_c_base)
    exploration = np.float32(exploration * np.sqrt(node_visits))
    masks = row * num_actions
    best, best_score = -1, -INFINITY
    for action in range(num_actions):
        visits = tree.children_visits[edges + action]
        score = exploration * tree.children_prior_probs[edges + action] / np.float32(visits + 1)
        if visits > 0:
            score += min(max((tree.children_qvalues[edges + action] - low) * scale, ZERO), ONE)
        if (best < 0 or score > best_score) and (roots.action_masks[masks + action] or not is_root):
            best, best_score = action, score
    return max(best, 0)


@njit_inline
def select_action(
    tree: Tree, roots: Roots, settings: SearchSettings, simulation: int, row: int, node: int, scores: np.ndarray
) -> int:
    """Select the action that a simulation takes at a node, by the rule for this kind of node."""
    is_root = node == row * settings.num_nodes + ROOT_INDEX
    rule = settings.root_rule if is_root else settings.interior_rule
    if rule == PUCT:
        return puct_action(tree, roots, settings, row, node, is_root)
    if rule == GUMBEL_ROOT:
        considered_visit = roots.considered_visits[roots.num_considered[row] * (settings.num_nodes - 1) + simulation]
        return gumbel_root_action(tree, roots, settings, row, np.int64(considered_visit), scores)
    return gumbel_interior_action(tree, settings, row, node, scores)
