"""
The compiled search: selection rules, Q transforms, and what becomes of trees from their planting to their conclusion.

Kernels get the trees as flat arrays (``flatten``), in which the nodes of all roots, and the edges of all nodes, are counted
through, so that one offset serves all arrays: a ``node`` is an index into ``[B * (N + 1)]``, an ``edge`` into
``[B * (N + 1) * A]``, a ``row`` is a root.
"""

import numpy as np

from sb3_muzero.common.jit import njit_cached, njit_inline
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
from sb3_muzero.search.state import MAX_VALUE, NODE_SCOPE, PUCT, TREE_SCOPE, Leaves, Roots, SearchSettings
from sb3_muzero.search.tree import NO_PARENT, ROOT_INDEX, UNVISITED, Tree

ZERO, ONE, INFINITY = np.float32(0.0), np.float32(1.0), np.float32(np.inf)
LOWEST_ROOT_SCORE = np.float32(-1e9)
TINY = np.finfo(np.float32).tiny
HIGH = np.float32(MAX_VALUE)


@njit_inline
def exponentiate(logits: np.ndarray, num_actions: int, largest: float) -> float:
    """
    Turn the first ``num_actions`` of some logits, of which one at least is finite, into weights: a softmax but for its sum.

    :param logits: a whole number of ``LANES``; those beyond become 0. Shape ``[padded A]``, float32.
    :param largest: the largest of them.
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
    """v_mix of Gumbel MuZero, Eq. 33: the node's own value mixed with the prior-weighted Q of its visited actions."""
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
    sigma(completed Q) of Gumbel MuZero, Eqs. 8 and 10: unvisited actions get the mixed value, all are rescaled to [0, 1].

    :param out: receives the transformed Q values. Shape ``[padded A]``.
    """
    num_actions = settings.num_actions
    edges = node * num_actions
    num_visited, max_visits = 0, np.int32(0)
    low, high = INFINITY, -INFINITY
    for action in range(num_actions):
        visits = tree.children_visits[edges + action]
        if visits > 0:
            num_visited += 1
            max_visits = max(max_visits, visits)
            out[action] = tree.children_qvalues[edges + action]
            low, high = min(low, out[action]), max(high, out[action])
    if num_visited < num_actions:
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
def masked_argmax(scores: np.ndarray, num_actions: int, invalid: np.ndarray, first: int) -> int:
    """Lowest index of the highest score among valid actions, an action that exists whatever the scores are."""
    best = -1
    for action in range(num_actions):
        if not invalid[first + action] and (best < 0 or scores[action] > scores[best]):
            best = action
    return max(best, 0)


@njit_inline
def gumbel_root_action(
    tree: Tree, roots: Roots, settings: SearchSettings, row: int, considered_visit: int, scores: np.ndarray
) -> int:
    """The best root action by g + logits + sigma(Q) among those with ``considered_visit`` visits (Algorithm 2, line 5)."""
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
    return masked_argmax(scores, num_actions, roots.invalid, noises)


@njit_inline
def improved_policy(tree: Tree, settings: SearchSettings, row: int, node: int, out: np.ndarray) -> float:
    """
    pi' = softmax(logits + sigma(completed Q)), Gumbel MuZero, Eq. 11.

    :param out: receives the policy times a factor. Shape ``[padded A]``.
    :return: the factor.
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
    """The action whose visits lag most behind the improved policy, pi' - N / (1 + sum N), Gumbel MuZero, Eq. 14."""
    factor = improved_policy(tree, settings, row, node, scores)
    num_actions = settings.num_actions
    edges = node * num_actions
    sum_visits = np.int32(1)
    for edge in range(edges, edges + num_actions):
        sum_visits += tree.children_visits[edge]
    # Both terms times both denominators
    best, best_score = 0, -INFINITY
    for action in range(num_actions):
        visits = np.float32(tree.children_visits[edges + action])
        score = scores[action] * np.float32(sum_visits) - visits * factor
        if score > best_score:
            best, best_score = action, score
    return best


@njit_inline
def puct_action(tree: Tree, roots: Roots, settings: SearchSettings, row: int, node: int) -> int:
    """
    The action of the highest upper confidence bound, MuZero, Eq. 2, with the node's own evaluation among its visits.

    Q values are normalised as in Eq. 5, over the whole tree or over the node's value and its visited actions;
    unvisited actions get 0.
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
    is_root = node == row * settings.num_nodes
    best, best_score = -1, -INFINITY
    for action in range(num_actions):
        visits = tree.children_visits[edges + action]
        score = exploration * tree.children_prior_probs[edges + action] / np.float32(visits + 1)
        if visits > 0:
            score += min(max((tree.children_qvalues[edges + action] - low) * scale, ZERO), ONE)
        if (best < 0 or score > best_score) and not (is_root and roots.invalid[masks + action]):
            best, best_score = action, score
    return max(best, 0)


@njit_inline
def select_action(
    tree: Tree, roots: Roots, settings: SearchSettings, simulation: int, row: int, node: int, scores: np.ndarray
) -> int:
    """The action that simulation number ``simulation`` takes at ``node``."""
    if settings.rule == PUCT:
        return puct_action(tree, roots, settings, row, node)
    if node == row * settings.num_nodes:
        considered_visit = roots.considered_visits[roots.num_considered[row] * (settings.num_nodes - 1) + simulation]
        return gumbel_root_action(tree, roots, settings, row, np.int64(considered_visit), scores)
    return gumbel_interior_action(tree, settings, row, node, scores)


@njit_inline
def is_usable(leaves: Leaves, leaf: int) -> bool:
    """Whether the model's answer is one that a search can use."""
    if not (abs(leaves.reward[leaf]) <= HIGH and abs(leaves.discount[leaf]) <= ONE and abs(leaves.value[leaf]) <= HIGH):
        return False
    largest = -INFINITY
    for action in range(leaves.prior_logits.shape[1]):
        logit = leaves.prior_logits[leaf, action]
        if np.isnan(logit):
            return False
        largest = max(largest, logit)
    return bool(-INFINITY < largest <= HIGH)


@njit_inline
def write_node(tree: Tree, settings: SearchSettings, node: int, value: float, logits: np.ndarray) -> None:
    """
    Write the model's view of a node.

    :param logits: of the policy; overwritten. Shape ``[padded A]``.
    """
    edges = node * settings.num_actions
    tree.node_values[node] = tree.raw_values[node] = value
    largest = -INFINITY
    for action in range(settings.num_actions):
        tree.children_prior_logits[edges + action] = logits[action]
        largest = max(largest, logits[action])
    scale = ONE / exponentiate(logits, settings.num_actions, largest)
    for action in range(settings.num_actions):
        tree.children_prior_probs[edges + action] = logits[action] * scale


@njit_cached
def initialize_roots(
    tree: Tree, roots: Roots, settings: SearchSettings, first_row: int, num_rows: int, scores: np.ndarray
) -> int:
    """
    Begin some trees: nothing but an expanded root in each.

    :param scores: scratch. Shape ``[padded A]``, float32.
    :return: the first row whose root has no value or policy to search with, -1 if there is none.
    """
    num_nodes, num_actions = settings.num_nodes, settings.num_actions
    for row in range(first_row, first_row + num_rows):
        for node in range(row * num_nodes, (row + 1) * num_nodes):
            tree.node_visits[node] = tree.node_depths[node] = 0
            tree.node_values[node] = tree.raw_values[node] = ZERO
            tree.parents[node] = tree.action_from_parent[node] = NO_PARENT
        for edge in range(row * num_nodes * num_actions, (row + 1) * num_nodes * num_actions):
            tree.children_index[edge] = UNVISITED
            tree.children_visits[edge] = 0
            tree.children_prior_logits[edge] = tree.children_prior_probs[edge] = ZERO
            tree.children_qvalues[edge] = tree.children_rewards[edge] = tree.children_discounts[edge] = ZERO
        has_numbers = abs(roots.value[row]) <= HIGH
        num_valid, largest = 0, -INFINITY
        for action in range(num_actions):
            logit = roots.prior_logits[row * num_actions + action]
            has_numbers = has_numbers and logit <= HIGH
            if roots.invalid[row * num_actions + action]:
                scores[action] = -INFINITY
            else:
                num_valid += 1
                largest = max(largest, logit)
                scores[action] = logit
        if not has_numbers or largest == -INFINITY:
            return row
        roots.num_considered[row] = min(num_valid, settings.max_num_considered_actions)
        node = row * num_nodes + ROOT_INDEX
        write_node(tree, settings, node, roots.value[row], scores)
        tree.node_visits[node] = 1
        tree.min_qvalue[row] = tree.max_qvalue[row] = roots.value[row]
    return -1


@njit_inline
def expand(tree: Tree, settings: SearchSettings, row: int, leaves: Leaves, leaf: int) -> None:
    """Write the model's answer into the node that the simulation reached."""
    first = row * settings.num_nodes
    parent, node = first + leaves.parent[leaf], first + leaves.node[leaf]
    tree.node_visits[node] += 1
    tree.node_depths[node] = tree.node_depths[parent] + 1
    tree.parents[node] = leaves.parent[leaf]
    tree.action_from_parent[node] = leaves.action[leaf]
    scores = leaves.scores[leaf]
    for action in range(settings.num_actions):
        scores[action] = leaves.prior_logits[leaf, action]
    write_node(tree, settings, node, leaves.value[leaf], scores)
    edge = parent * settings.num_actions + leaves.action[leaf]
    tree.children_index[edge] = leaves.node[leaf]
    tree.children_rewards[edge] = leaves.reward[leaf]
    tree.children_discounts[edge] = leaves.discount[leaf]


@njit_inline
def backward(tree: Tree, settings: SearchSettings, row: int, leaf_node: int) -> None:
    """Add the leaf's return to every node and edge on the way up, MuZero, Eqs. 3 and 4."""
    first = row * settings.num_nodes
    node = first + leaf_node
    value = leaf_return = np.float64(tree.node_values[node])
    low, high = tree.min_qvalue[row], tree.max_qvalue[row]
    while node != first:
        parent = first + tree.parents[node]
        edge = parent * settings.num_actions + tree.action_from_parent[node]
        reward, discount = np.float64(tree.children_rewards[edge]), np.float64(tree.children_discounts[edge])
        qvalue = np.float32(reward + discount * value)
        tree.children_visits[edge] += 1
        tree.children_qvalues[edge] = qvalue
        low, high = min(low, qvalue), max(high, qvalue)
        leaf_return = reward + discount * leaf_return
        visits = np.float64(tree.node_visits[parent])
        value = (np.float64(tree.node_values[parent]) * visits + leaf_return) / (visits + 1.0)
        tree.node_values[parent] = value
        tree.node_visits[parent] += 1
        node = parent
    tree.min_qvalue[row], tree.max_qvalue[row] = low, high


@njit_cached
def select_leaves(
    tree: Tree, roots: Roots, settings: SearchSettings, simulation: int, first_row: int, num_rows: int, leaves: Leaves
) -> None:
    """
    Walk from some roots to an unvisited action or the depth limit; ``leaves`` then says which steps the model has to evaluate.

    All walks take a step in turn: each waits for its own last one only, so that the processor works on several at once.
    """
    for leaf in range(num_rows):
        leaves.parent[leaf] = ROOT_INDEX
        leaves.active[leaf] = leaf
    num_active, depth = num_rows, 0
    while num_active > 0:
        depth += 1
        still_active = 0
        for index in range(num_active):
            leaf = leaves.active[index]
            row = first_row + leaf
            node = row * settings.num_nodes + leaves.parent[leaf]
            action = select_action(tree, roots, settings, simulation, row, node, leaves.scores[leaf])
            child = np.int64(tree.children_index[node * settings.num_actions + action])
            leaves.action[leaf] = action
            leaves.node[leaf] = simulation + 1 if child == UNVISITED else child
            goes_on = child != UNVISITED and depth < settings.max_depth
            leaves.parent[leaf] = child if goes_on else leaves.parent[leaf]
            leaves.active[still_active] = leaf
            still_active += 1 if goes_on else 0
        num_active = still_active


@njit_cached
def expand_and_backup(tree: Tree, settings: SearchSettings, first_row: int, num_rows: int, leaves: Leaves) -> int:
    """
    Expand and back up some roots.

    :return: the first leaf in which the model's answer is none to search with, -1 if there is none.
    """
    for leaf in range(num_rows):
        if not is_usable(leaves, leaf):
            return leaf
        expand(tree, settings, first_row + leaf, leaves, leaf)
        backward(tree, settings, first_row + leaf, leaves.node[leaf])
    return -1


@njit_cached
def select_root_actions(
    tree: Tree, roots: Roots, settings: SearchSettings, first_row: int, num_rows: int, scores: np.ndarray
) -> None:
    """
    After the last simulation: the policy target of some roots, and the best of the most visited actions to play.

    :param scores: scratch. Shape ``[padded A]``, float32.
    """
    num_actions = settings.num_actions
    for row in range(first_row, first_row + num_rows):
        node = row * settings.num_nodes + ROOT_INDEX
        edges, weights = node * num_actions, row * num_actions
        if settings.rule == PUCT:
            scale = ONE / np.float32(settings.num_nodes - 1)
            for action in range(num_actions):
                roots.action_weights[weights + action] = np.float32(tree.children_visits[edges + action]) * scale
            continue
        most_visits = np.int64(0)
        for edge in range(edges, edges + num_actions):
            most_visits = max(most_visits, np.int64(tree.children_visits[edge]))
        roots.action[row] = gumbel_root_action(tree, roots, settings, row, most_visits, scores)
        factor = improved_policy(tree, settings, row, node, scores)
        for action in range(num_actions):
            roots.action_weights[weights + action] = scores[action] / factor
