"""Search trees as dense arrays, in which simulation ``t`` expands the node with index ``t + 1``."""

from typing import NamedTuple

import numpy as np

ROOT_INDEX = 0
NO_PARENT = -1
UNVISITED = -1
NO_ACTION = -2


class Tree(NamedTuple):
    """
    ``B`` search trees of up to ``N + 1`` nodes with ``E`` edges each; the layout is that of mctx.

    The edges of a decision node are the ``A`` actions. With a ``ChanceModel``, each of these leads to a chance node, whose
    edges are the ``C`` outcomes and lead to decision nodes. ``E`` is the larger of the two numbers, and ``A`` without chance.
    A reward of 0 and a discount of 1 lead to a chance node.

    A node that was never expanded has no visits and no parent. This happens only with a depth limit, where a simulation may
    evaluate a leaf again instead of adding one.

    :param node_visits: number of evaluations of the node and below it. Shape ``[B, N + 1]``, int32.
    :param node_values: mean of the node's own evaluation and the returns below it. Shape ``[B, N + 1]``.
    :param raw_values: the model's value of the node. Shape ``[B, N + 1]``.
    :param node_depths: number of edges from the root. Shape ``[B, N + 1]``, int32.
    :param parents: index of the parent, -1 for none. Shape ``[B, N + 1]``, int32.
    :param action_from_parent: action or outcome that leads here, -1 for none. Shape ``[B, N + 1]``, int32.
    :param is_chance_node: whether the node is a chance node. Shape ``[B, N + 1]``, bool.
    :param children_index: index of the child, -1 where unvisited, -2 where the model's logit is minus infinity or the node
        has fewer edges: there is no action or outcome. Shape ``[B, N + 1, E]``, int32.
    :param children_prior_logits: the model's logits of the actions or outcomes; minus infinity where an action is masked or
        there is none. Shape ``[B, N + 1, E]``.
    :param children_prior_probs: their softmax. Shape ``[B, N + 1, E]``.
    :param children_visits: visits of the edge. Shape ``[B, N + 1, E]``, int32.
    :param children_qvalues: Q value of the edge, reward + discount * value of the child, 0 where unvisited.
        Shape ``[B, N + 1, E]``.
    :param children_rewards: reward of the edge. Shape ``[B, N + 1, E]``.
    :param children_discounts: discount of the edge. Shape ``[B, N + 1, E]``.
    :param min_qvalue: minimum of the root's raw value and all Q values seen in backups. Shape ``[B]``.
    :param max_qvalue: maximum of these. Shape ``[B]``.
    """

    node_visits: np.ndarray
    node_values: np.ndarray
    raw_values: np.ndarray
    node_depths: np.ndarray
    parents: np.ndarray
    action_from_parent: np.ndarray
    is_chance_node: np.ndarray
    children_index: np.ndarray
    children_prior_logits: np.ndarray
    children_prior_probs: np.ndarray
    children_visits: np.ndarray
    children_qvalues: np.ndarray
    children_rewards: np.ndarray
    children_discounts: np.ndarray
    min_qvalue: np.ndarray
    max_qvalue: np.ndarray


INTEGERS = {"node_visits", "node_depths", "parents", "action_from_parent", "children_index", "children_visits"}
TYPES = [np.int32 if name in INTEGERS else np.bool_ if name == "is_chance_node" else np.float32 for name in Tree._fields]


def instantiate_tree(batch_size: int, num_nodes: int, num_edges: int) -> Tree:
    """
    :param batch_size: number of roots ``B``.
    :param num_nodes: nodes of each tree ``N + 1``.
    :param num_edges: edges of each node ``E``.
    :return: uninitialized trees.
    """
    shapes = 7 * [(batch_size, num_nodes)] + 7 * [(batch_size, num_nodes, num_edges)] + 2 * [(batch_size,)]
    return Tree._make(map(np.empty, shapes, TYPES))


def flatten(tree: Tree) -> Tree:
    """
    :param tree: trees.
    :return: the same memory as one-dimensional arrays.
    """
    return Tree(*(array.reshape(-1) for array in tree))
