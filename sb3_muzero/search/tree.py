"""The search tree: one struct of dense arrays, in which the node that simulation ``t`` expands has index ``t + 1``."""

from typing import NamedTuple

import numpy as np

ROOT_INDEX = 0
NO_PARENT = -1
UNVISITED = -1


class Tree(NamedTuple):
    """
    ``B`` search trees of up to ``N + 1`` nodes with ``A`` actions each; the layout is that of mctx.

    A node that was never expanded has no visits and no parent: this happens only under a depth limit, where a
    simulation may evaluate a leaf again instead of adding one.

    :param node_visits: evaluations of and below the node, its own included. Shape ``[B, N + 1]``, int32.
    :param node_values: mean of the node's own evaluation and the returns below it. Shape ``[B, N + 1]``.
    :param raw_values: the model's value of the node. Shape ``[B, N + 1]``.
    :param node_depths: number of edges from the root. Shape ``[B, N + 1]``, int32.
    :param parents: index of the parent, -1 for none. Shape ``[B, N + 1]``, int32.
    :param action_from_parent: action that leads here, -1 for none. Shape ``[B, N + 1]``, int32.
    :param children_index: index of the child, -1 where unvisited. Shape ``[B, N + 1, A]``, int32.
    :param children_prior_logits: the model's policy logits; the most negative float32 where an action is masked.
        Shape ``[B, N + 1, A]``.
    :param children_prior_probs: their softmax. Shape ``[B, N + 1, A]``.
    :param children_visits: visits of the edge. Shape ``[B, N + 1, A]``, int32.
    :param children_values: value of the child. Shape ``[B, N + 1, A]``.
    :param children_rewards: reward of the edge. Shape ``[B, N + 1, A]``.
    :param children_discounts: discount of the edge. Shape ``[B, N + 1, A]``.
    :param min_qvalue: the least of the root's own value and all Q values seen in backups. Shape ``[B]``.
    :param max_qvalue: the greatest of them. Shape ``[B]``.
    """

    node_visits: np.ndarray
    node_values: np.ndarray
    raw_values: np.ndarray
    node_depths: np.ndarray
    parents: np.ndarray
    action_from_parent: np.ndarray
    children_index: np.ndarray
    children_prior_logits: np.ndarray
    children_prior_probs: np.ndarray
    children_visits: np.ndarray
    children_values: np.ndarray
    children_rewards: np.ndarray
    children_discounts: np.ndarray
    min_qvalue: np.ndarray
    max_qvalue: np.ndarray

    def root_qvalues(self) -> np.ndarray:
        """
        :return: Q values of the root's actions, 0 where unvisited. Shape ``[B, A]``.
        """
        return (
            self.children_rewards[:, ROOT_INDEX] + self.children_discounts[:, ROOT_INDEX] * self.children_values[:, ROOT_INDEX]
        )


def instantiate_tree(prior_logits: np.ndarray, value: np.ndarray, num_simulations: int) -> Tree:
    """
    Allocate trees in which only the roots are expanded.

    :param prior_logits: policy logits at the roots, masked. Shape ``[B, A]``.
    :param value: values of the roots. Shape ``[B]``.
    :param num_simulations: number of nodes to make room for besides the root.
    :return: the trees.
    """
    batch_size, num_actions = prior_logits.shape
    nodes = (batch_size, num_simulations + 1)
    edges = (*nodes, num_actions)
    tree = Tree(
        node_visits=np.zeros(nodes, np.int32),
        node_values=np.zeros(nodes, np.float32),
        raw_values=np.zeros(nodes, np.float32),
        node_depths=np.zeros(nodes, np.int32),
        parents=np.full(nodes, NO_PARENT, np.int32),
        action_from_parent=np.full(nodes, NO_PARENT, np.int32),
        children_index=np.full(edges, UNVISITED, np.int32),
        children_prior_logits=np.zeros(edges, np.float32),
        children_prior_probs=np.zeros(edges, np.float32),
        children_visits=np.zeros(edges, np.int32),
        children_values=np.zeros(edges, np.float32),
        children_rewards=np.zeros(edges, np.float32),
        children_discounts=np.zeros(edges, np.float32),
        min_qvalue=value.astype(np.float32),
        max_qvalue=value.astype(np.float32),
    )
    tree.node_visits[:, ROOT_INDEX] = 1
    tree.node_values[:, ROOT_INDEX] = value
    tree.raw_values[:, ROOT_INDEX] = value
    tree.children_prior_logits[:, ROOT_INDEX] = prior_logits
    tree.children_prior_probs[:, ROOT_INDEX] = softmax(prior_logits)
    return tree


def softmax(logits: np.ndarray) -> np.ndarray:
    """
    :param logits: at least one finite per row. Shape ``[B, A]``.
    :return: probabilities. Shape ``[B, A]``.
    """
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True), dtype=np.float64)
    return weights / weights.sum(axis=-1, keepdims=True)
