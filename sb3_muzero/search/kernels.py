"""
The compiled steps of a search: ``initialize_roots``, then for each simulation ``select_leaves`` and, after the model,
``expand_and_backup``; finally ``select_root_actions``. Indices are those of ``selection``.
"""

import numpy as np

from sb3_muzero.common.jit import njit_cached, njit_inline
from sb3_muzero.search.selection import INFINITY, ONE, ZERO, exponentiate, gumbel_root_action, improved_policy, select_action
from sb3_muzero.search.state import MAX_VALUE, VISIT_FRACTIONS, Leaves, Roots, SearchSettings
from sb3_muzero.search.tree import NO_ACTION, NO_PARENT, ROOT_INDEX, UNVISITED, Tree

HIGH = np.float32(MAX_VALUE)


@njit_inline
def is_usable(leaves: Leaves, leaf: int) -> bool:
    """Whether the model's output for a leaf is valid."""
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
    Write the model's output into a node.

    :param logits: logits of its edges; overwritten. Shape ``[padded E]``.
    """
    edges = node * settings.num_edges
    tree.node_values[node] = tree.raw_values[node] = value
    largest = -INFINITY
    for edge in range(settings.num_edges):
        tree.children_prior_logits[edges + edge] = logits[edge]
        largest = max(largest, logits[edge])
    scale = ONE / exponentiate(logits, settings.num_edges, largest)
    for edge in range(settings.num_edges):
        tree.children_prior_probs[edges + edge] = logits[edge] * scale


@njit_cached
def initialize_roots(
    tree: Tree, roots: Roots, settings: SearchSettings, first_row: int, num_rows: int, scores: np.ndarray
) -> int:
    """
    Initialize some trees with an expanded root.

    :param tree: flat trees.
    :param roots: roots.
    :param settings: settings of the search.
    :param first_row: first root.
    :param num_rows: number of roots.
    :param scores: scratch. Shape ``[padded E]``, float32.
    :return: -1, or the first row with an invalid value or policy.
    """
    num_nodes, num_actions, num_edges = settings.num_nodes, settings.num_actions, settings.num_edges
    for row in range(first_row, first_row + num_rows):
        for node in range(row * num_nodes, (row + 1) * num_nodes):
            tree.node_visits[node] = tree.node_depths[node] = 0
            tree.node_values[node] = tree.raw_values[node] = ZERO
            tree.parents[node] = tree.action_from_parent[node] = NO_PARENT
            tree.is_chance_node[node] = False
        for edge in range(row * num_nodes * num_edges, (row + 1) * num_nodes * num_edges):
            tree.children_index[edge] = UNVISITED
            tree.children_visits[edge] = 0
            tree.children_prior_logits[edge] = tree.children_prior_probs[edge] = ZERO
            tree.children_qvalues[edge] = tree.children_rewards[edge] = tree.children_discounts[edge] = ZERO
        node = row * num_nodes + ROOT_INDEX
        has_numbers = abs(roots.value[row]) <= HIGH
        num_legal, largest = 0, -INFINITY
        for action in range(num_actions):
            logit = roots.prior_logits[row * num_actions + action]
            has_numbers = has_numbers and logit <= HIGH
            if logit == -INFINITY:
                tree.children_index[node * num_edges + action] = NO_ACTION
            if roots.action_masks[row * num_actions + action]:
                num_legal += 1
                largest = max(largest, logit)
                scores[action] = logit
            else:
                scores[action] = -INFINITY
        if not has_numbers or largest == -INFINITY:
            return row
        for edge in range(num_actions, num_edges):
            tree.children_index[node * num_edges + edge] = NO_ACTION
            scores[edge] = -INFINITY
        roots.num_considered[row] = min(num_legal, settings.max_num_considered_actions)
        write_node(tree, settings, node, roots.value[row], scores)
        tree.node_visits[node] = 1
        tree.min_qvalue[row] = tree.max_qvalue[row] = roots.value[row]
    return -1


@njit_inline
def expand(tree: Tree, settings: SearchSettings, row: int, leaves: Leaves, leaf: int) -> None:
    """Write the model's output into the node that the simulation reached, and link it to its parent."""
    first = row * settings.num_nodes
    parent, node = first + leaves.parent[leaf], first + leaves.node[leaf]
    tree.node_visits[node] += 1
    tree.node_depths[node] = tree.node_depths[parent] + 1
    tree.parents[node] = leaves.parent[leaf]
    tree.action_from_parent[node] = leaves.action[leaf]
    tree.is_chance_node[node] = leaves.is_chance[leaf]
    scores = leaves.scores[leaf]
    for edge in range(settings.num_edges):
        scores[edge] = leaves.prior_logits[leaf, edge]
        if scores[edge] == -INFINITY:
            tree.children_index[node * settings.num_edges + edge] = NO_ACTION
    write_node(tree, settings, node, leaves.value[leaf], scores)
    edge = parent * settings.num_edges + leaves.action[leaf]
    tree.children_index[edge] = leaves.node[leaf]
    tree.children_rewards[edge] = leaves.reward[leaf]
    tree.children_discounts[edge] = leaves.discount[leaf]


@njit_inline
def backward(tree: Tree, settings: SearchSettings, row: int, leaf_node: int) -> None:
    """Back up the return from a leaf to the root, MuZero, Eqs. 3 and 4."""
    first = row * settings.num_nodes
    node = first + leaf_node
    value = leaf_return = np.float64(tree.node_values[node])
    low, high = tree.min_qvalue[row], tree.max_qvalue[row]
    while node != first:
        parent = first + tree.parents[node]
        edge = parent * settings.num_edges + tree.action_from_parent[node]
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
    Traverse some trees from the root to an unvisited edge or the depth limit.

    The traversals take one step each in turn. They do not depend on each other, so the processor can overlap them.

    :param tree: flat trees.
    :param roots: roots.
    :param settings: settings of the search.
    :param simulation: index of the simulation.
    :param first_row: first root.
    :param num_rows: number of roots.
    :param leaves: receives the steps that the model has to evaluate.
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
            child = np.int64(tree.children_index[node * settings.num_edges + action])
            leaves.action[leaf] = action
            leaves.node[leaf] = simulation + 1 if child < 0 else child
            goes_on = child >= 0 and depth < settings.max_depth
            leaves.parent[leaf] = child if goes_on else leaves.parent[leaf]
            leaves.active[still_active] = leaf
            still_active += 1 if goes_on else 0
        num_active = still_active
    if settings.num_outcomes > 0:
        for leaf in range(num_rows):
            parent = (first_row + leaf) * settings.num_nodes + leaves.parent[leaf]
            leaves.is_chance[leaf] = not tree.is_chance_node[parent]


@njit_cached
def expand_and_backup(tree: Tree, settings: SearchSettings, first_row: int, num_rows: int, leaves: Leaves) -> int:
    """
    Add the model's output to some trees and back up the returns.

    :param tree: flat trees.
    :param settings: settings of the search.
    :param first_row: first root.
    :param num_rows: number of roots.
    :param leaves: steps and the model's output.
    :return: -1, or the first leaf with an invalid output.
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
    After the last simulation, compute the policy targets of some roots. With the improved policy as target, also select the
    actions: the best ones among the most visited.

    :param tree: flat trees.
    :param roots: roots; receive ``action_weights`` and ``action``.
    :param settings: settings of the search.
    :param first_row: first root.
    :param num_rows: number of roots.
    :param scores: scratch. Shape ``[padded E]``, float32.
    """
    num_actions = settings.num_actions
    for row in range(first_row, first_row + num_rows):
        node = row * settings.num_nodes + ROOT_INDEX
        edges, weights = node * settings.num_edges, row * num_actions
        if settings.policy_target == VISIT_FRACTIONS:
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
