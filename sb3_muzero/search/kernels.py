"""
The compiled search: selection rules, Q transforms, and simulate, expand, backward on one root of a batch of trees.

All kernels of the tree sit in this one file on purpose: numba's disk cache notices changes of a function's own file only.
After a change of ``Tree``'s fields remove the ``__pycache__`` beside this file. One signature: int64 indices, float64 sums.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from sb3_muzero.search.tree import ROOT_INDEX, UNVISITED, Tree

GUMBEL, PUCT = 0, 1
NODE_SCOPE, TREE_SCOPE = 0, 1

# Nothing here allocates; without reference counts (_nrt) a search takes half the time, and its compilation much less
OPTIONS: Any = {"nogil": True, "error_model": "numpy", "_nrt": False}
kernel: Any = njit(cache=True, **OPTIONS)

LOWEST_ROOT_SCORE = -1e9
TINY = float(np.finfo(np.float32).tiny)


class SearchSettings(NamedTuple):
    """
    The constants of a search.

    :param rule: how actions are selected, ``GUMBEL`` or ``PUCT``.
    :param qvalue_scope: what Q values are normalised over, ``NODE_SCOPE`` or ``TREE_SCOPE``.
    :param max_depth: largest number of edges from the root to a leaf.
    :param min_qvalue_range: least range that Q values are divided by, in the units of the reward.
    :param value_scale: c_scale of Gumbel MuZero.
    :param maxvisit_init: c_visit of Gumbel MuZero.
    :param pb_c_init: c_1 of MuZero.
    :param pb_c_base: c_2 of MuZero.
    """

    rule: int
    qvalue_scope: int
    max_depth: int
    min_qvalue_range: float
    value_scale: float = 0.0
    maxvisit_init: float = 0.0
    pb_c_init: float = 0.0
    pb_c_base: float = 1.0


class RootActions(NamedTuple):
    """
    What selection knows at the roots only.

    :param invalid: True for actions that may not be taken. Shape ``[B, A]``, bool.
    :param gumbel: noise of the Gumbel root. Shape ``[B, A]``, float32.
    :param considered_visits: Sequential Halving of the Gumbel root. Shape ``[B, N]``, int32.
    """

    invalid: np.ndarray
    gumbel: np.ndarray
    considered_visits: np.ndarray


class Leaves(NamedTuple):
    """
    Where the current simulation ends in each tree, and what the model says about it: the joint to the model.

    ``select_leaves`` writes the first three, the model reads ``parent`` and ``action`` and writes the next four,
    ``grow`` reads all.

    :param parent: node to step from. Shape ``[B]``, int64.
    :param action: action to take there. Shape ``[B]``, int64.
    :param node: node that the step leads to. Shape ``[B]``, int64.
    :param reward: of the step. Shape ``[B]``, float32.
    :param discount: of the step. Shape ``[B]``, float32.
    :param prior_logits: at the node. Shape ``[B, A]``, float32.
    :param value: of the node. Shape ``[B]``, float32.
    :param scores: scratch of the selection rules. Shape ``[B, A]``, float64.
    """

    parent: np.ndarray
    action: np.ndarray
    node: np.ndarray
    reward: np.ndarray
    discount: np.ndarray
    prior_logits: np.ndarray
    value: np.ndarray
    scores: np.ndarray


def instantiate_leaves(batch_size: int, num_actions: int) -> Leaves:
    """
    :param batch_size: number of roots ``B``.
    :param num_actions: number of actions ``A``.
    :return: room for one simulation of every root.
    """
    return Leaves(
        parent=np.zeros(batch_size, np.int64),
        action=np.zeros(batch_size, np.int64),
        node=np.zeros(batch_size, np.int64),
        reward=np.zeros(batch_size, np.float32),
        discount=np.zeros(batch_size, np.float32),
        prior_logits=np.zeros((batch_size, num_actions), np.float32),
        value=np.zeros(batch_size, np.float32),
        scores=np.zeros((batch_size, num_actions), np.float64),
    )


@kernel
def qvalue(tree: Tree, row: int, node: int, action: int) -> float:
    """Q value of a visited edge, r + discount * V(child)."""
    value = np.float64(tree.children_values[row, node, action])
    return tree.children_rewards[row, node, action] + tree.children_discounts[row, node, action] * value


@kernel
def maximum(array: np.ndarray) -> float:
    """Largest element of an array of shape ``[A]``; a plain loop compiles faster than NumPy's reduction."""
    largest = array[0]
    for element in array:
        largest = max(largest, element)
    return largest


@kernel
def softmax_inplace(logits: np.ndarray) -> None:
    """Softmax of logits of shape ``[A]`` of which one at least is finite."""
    largest = maximum(logits)
    total = 0.0
    for action in range(logits.size):
        logits[action] = np.exp(logits[action] - largest)
        total += logits[action]
    for action in range(logits.size):
        logits[action] /= total


@kernel
def mixed_value(tree: Tree, row: int, node: int) -> float:
    """v_mix of Gumbel MuZero, Eq. 33: the node's own value mixed with the prior-weighted Q of its visited actions."""
    sum_visits = 0
    sum_probs = 0.0
    weighted_qvalues = 0.0
    for action in range(tree.children_visits.shape[2]):
        visits = tree.children_visits[row, node, action]
        if visits > 0:
            prob = max(TINY, np.float64(tree.children_prior_probs[row, node, action]))
            sum_visits += visits
            sum_probs += prob
            weighted_qvalues += prob * qvalue(tree, row, node, action)
    raw_value = np.float64(tree.raw_values[row, node])
    if sum_visits == 0:
        return raw_value
    return (raw_value + sum_visits * weighted_qvalues / sum_probs) / (sum_visits + 1)


@kernel
def normalize(qvalues: np.ndarray, low: float, high: float, min_range: float) -> None:
    """Map Q values of shape ``[A]`` from [low, high] to [0, 1]."""
    scale = 1.0 / max(high - low, min_range)
    for action in range(qvalues.size):
        qvalues[action] = min(max((qvalues[action] - low) * scale, 0.0), 1.0)


@kernel
def qtransform_completed_by_mix_value(tree: Tree, settings: SearchSettings, row: int, node: int, out: np.ndarray) -> None:
    """
    sigma(completed Q) of Gumbel MuZero, Eqs. 8 and 10: unvisited actions get the mixed value, all are rescaled to [0, 1].

    :param out: receives the transformed Q values. Shape ``[A]``.
    """
    unvisited_value = mixed_value(tree, row, node)
    max_visits = 0
    for action in range(out.size):
        visits = tree.children_visits[row, node, action]
        max_visits = max(max_visits, visits)
        out[action] = qvalue(tree, row, node, action) if visits > 0 else unvisited_value
    low, high = np.inf, -np.inf
    for action in range(out.size):
        low, high = min(low, out[action]), max(high, out[action])
    if settings.qvalue_scope == TREE_SCOPE:
        low, high = np.float64(tree.min_qvalue[row]), np.float64(tree.max_qvalue[row])
    normalize(out, low, high, settings.min_qvalue_range)
    scale = (settings.maxvisit_init + max_visits) * settings.value_scale
    for action in range(out.size):
        out[action] *= scale


@kernel
def qtransform_by_min_max(tree: Tree, settings: SearchSettings, row: int, node: int, out: np.ndarray) -> None:
    """
    Q in [0, 1] as in MuZero, Eq. 5, where unvisited actions get 0.

    The bounds are those of the whole tree, or of the node's value and its visited actions.

    :param out: receives the normalised Q values. Shape ``[A]``.
    """
    low, high = np.float64(tree.min_qvalue[row]), np.float64(tree.max_qvalue[row])
    if settings.qvalue_scope == NODE_SCOPE:
        low = high = np.float64(tree.node_values[row, node])
    for action in range(out.size):
        out[action] = -np.inf
        if tree.children_visits[row, node, action] > 0:
            out[action] = qvalue(tree, row, node, action)
            if settings.qvalue_scope == NODE_SCOPE:
                low, high = min(low, out[action]), max(high, out[action])
    normalize(out, low, high, settings.min_qvalue_range)


@kernel
def masked_argmax(scores: np.ndarray, invalid: np.ndarray) -> int:
    """Lowest index of the highest score among valid actions, an action that exists whatever the scores are."""
    best = -1
    for action in range(scores.size):
        if not invalid[action] and (best < 0 or scores[action] > scores[best]):
            best = action
    return max(best, 0)


@kernel
def gumbel_root_action(
    tree: Tree, root: RootActions, settings: SearchSettings, row: int, considered_visit: int, scores: np.ndarray
) -> int:
    """The best root action by g + logits + sigma(Q) among those with ``considered_visit`` visits (Algorithm 2, line 5)."""
    qtransform_completed_by_mix_value(tree, settings, row, np.int64(ROOT_INDEX), scores)
    logits = tree.children_prior_logits[row, ROOT_INDEX]
    largest = maximum(logits)
    for action in range(scores.size):
        scores[action] = max(LOWEST_ROOT_SCORE, root.gumbel[row, action] + (logits[action] - largest) + scores[action])
        if tree.children_visits[row, ROOT_INDEX, action] != considered_visit:
            scores[action] = -np.inf
    return masked_argmax(scores, root.invalid[row])


@kernel
def improved_policy(tree: Tree, settings: SearchSettings, row: int, node: int, out: np.ndarray) -> None:
    """
    pi' = softmax(logits + sigma(completed Q)), Gumbel MuZero, Eq. 11.

    :param out: receives the policy. Shape ``[A]``.
    """
    qtransform_completed_by_mix_value(tree, settings, row, node, out)
    for action in range(out.size):
        out[action] += tree.children_prior_logits[row, node, action]
    softmax_inplace(out)


@kernel
def gumbel_interior_action(tree: Tree, settings: SearchSettings, row: int, node: int, scores: np.ndarray) -> int:
    """The action whose visits lag most behind the improved policy, pi' - N / (1 + sum N), Gumbel MuZero, Eq. 14."""
    improved_policy(tree, settings, row, node, scores)
    sum_visits = 0
    for action in range(scores.size):
        sum_visits += tree.children_visits[row, node, action]
    best = 0
    for action in range(scores.size):
        scores[action] -= tree.children_visits[row, node, action] / (1.0 + sum_visits)
        if scores[action] > scores[best]:
            best = action
    return best


@kernel
def puct_action(tree: Tree, root: RootActions, settings: SearchSettings, row: int, node: int, scores: np.ndarray) -> int:
    """The action of the highest upper confidence bound, MuZero, Eq. 2, with the node's own evaluation among its visits."""
    qtransform_by_min_max(tree, settings, row, node, scores)
    visits = np.float64(tree.node_visits[row, node])
    exploration = settings.pb_c_init + np.log((visits + settings.pb_c_base + 1.0) / settings.pb_c_base)
    exploration *= np.sqrt(visits)
    best = -1
    for action in range(scores.size):
        prob = np.float64(tree.children_prior_probs[row, node, action])
        scores[action] += exploration * prob / (1.0 + tree.children_visits[row, node, action])
        is_valid = node != ROOT_INDEX or not root.invalid[row, action]
        if is_valid and (best < 0 or scores[action] > scores[best]):
            best = action
    return max(best, 0)


@kernel
def select_action(
    tree: Tree, root: RootActions, settings: SearchSettings, simulation: int, row: int, node: int, scores: np.ndarray
) -> int:
    """The action that simulation number ``simulation`` takes at ``node``."""
    if settings.rule == PUCT:
        return puct_action(tree, root, settings, row, node, scores)
    if node == ROOT_INDEX:
        return gumbel_root_action(tree, root, settings, row, np.int64(root.considered_visits[row, simulation]), scores)
    return gumbel_interior_action(tree, settings, row, node, scores)


@kernel
def simulate(tree: Tree, root: RootActions, settings: SearchSettings, simulation: int, row: int, leaves: Leaves) -> None:
    """Walk from the root to an unvisited action or the depth limit, and note in ``leaves`` where that is."""
    node = np.int64(ROOT_INDEX)
    depth = 0
    while True:
        action = select_action(tree, root, settings, simulation, row, node, leaves.scores[row])
        child = np.int64(tree.children_index[row, node, action])
        depth += 1
        if child == UNVISITED or depth >= settings.max_depth:
            break
        node = child
    leaves.parent[row] = node
    leaves.action[row] = action
    leaves.node[row] = simulation + 1 if child == UNVISITED else child


@kernel
def is_finite(leaves: Leaves, row: int) -> bool:
    """Whether the model's answer is one that a search can use."""
    if not (np.isfinite(leaves.reward[row]) and np.isfinite(leaves.discount[row]) and np.isfinite(leaves.value[row])):
        return False
    largest = -np.inf
    for logit in leaves.prior_logits[row]:
        if np.isnan(logit):
            return False
        largest = max(largest, logit)
    return np.isfinite(largest)


@kernel
def expand(tree: Tree, row: int, leaves: Leaves) -> None:
    """Write the model's answer into the node that the simulation reached."""
    parent, action, node = leaves.parent[row], leaves.action[row], leaves.node[row]
    tree.node_visits[row, node] += 1
    tree.node_values[row, node] = leaves.value[row]
    tree.raw_values[row, node] = leaves.value[row]
    tree.node_depths[row, node] = tree.node_depths[row, parent] + 1
    tree.parents[row, node] = parent
    tree.action_from_parent[row, node] = action
    probs = leaves.scores[row]
    for child in range(probs.size):
        tree.children_prior_logits[row, node, child] = leaves.prior_logits[row, child]
        probs[child] = leaves.prior_logits[row, child]
    softmax_inplace(probs)
    for child in range(probs.size):
        tree.children_prior_probs[row, node, child] = probs[child]
    tree.children_index[row, parent, action] = node
    tree.children_rewards[row, parent, action] = leaves.reward[row]
    tree.children_discounts[row, parent, action] = leaves.discount[row]


@kernel
def backward(tree: Tree, row: int, leaf: int) -> None:
    """Add the leaf's return to every node and edge on the way up, MuZero, Eqs. 3 and 4."""
    node = np.int64(leaf)
    leaf_return = np.float64(tree.node_values[row, leaf])
    while node != ROOT_INDEX:
        parent, action = np.int64(tree.parents[row, node]), np.int64(tree.action_from_parent[row, node])
        tree.children_values[row, parent, action] = tree.node_values[row, node]
        tree.children_visits[row, parent, action] += 1
        edge_qvalue = np.float32(qvalue(tree, row, parent, action))
        tree.min_qvalue[row] = min(tree.min_qvalue[row], edge_qvalue)
        tree.max_qvalue[row] = max(tree.max_qvalue[row], edge_qvalue)
        leaf_return = tree.children_rewards[row, parent, action] + tree.children_discounts[row, parent, action] * leaf_return
        visits = tree.node_visits[row, parent]
        tree.node_values[row, parent] = (tree.node_values[row, parent] * np.float64(visits) + leaf_return) / (visits + 1)
        tree.node_visits[row, parent] = visits + 1
        node = parent


@kernel
def select_leaves(tree: Tree, root: RootActions, settings: SearchSettings, simulation: int, leaves: Leaves) -> None:
    """Simulate every root; ``leaves`` then says which steps the model has to evaluate."""
    for row in range(leaves.node.size):
        simulate(tree, root, settings, simulation, row, leaves)


@kernel
def grow(tree: Tree, leaves: Leaves) -> int:
    """
    Expand and back up every root.

    :return: the first row in which the model's answer is not finite, -1 if there is none.
    """
    for row in range(leaves.node.size):
        if not is_finite(leaves, row):
            return row
        expand(tree, row, leaves)
        backward(tree, row, leaves.node[row])
    return -1


@kernel
def gumbel_policy(
    tree: Tree, root: RootActions, settings: SearchSettings, scores: np.ndarray, action: np.ndarray, action_weights: np.ndarray
) -> None:
    """
    The action to play and the policy target of every root, after the last simulation.

    :param action: receives the best of the most visited actions. Shape ``[B]``, int64.
    :param action_weights: receives the improved policy. Shape ``[B, A]``, float32.
    """
    for row in range(action.size):
        most_visits = np.int64(maximum(tree.children_visits[row, ROOT_INDEX]))
        action[row] = gumbel_root_action(tree, root, settings, row, most_visits, scores[row])
        improved_policy(tree, settings, row, np.int64(ROOT_INDEX), scores[row])
        for index in range(action_weights.shape[1]):
            action_weights[row, index] = scores[row, index]
