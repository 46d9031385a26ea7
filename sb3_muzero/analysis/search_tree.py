"""What a search tree says: the line of play that it expects, the names of its edges, and where to draw its nodes."""

from collections.abc import Sequence

import numpy as np

from sb3_muzero.actions.base import Actions
from sb3_muzero.search import SearchOutput


def principal_variation(search: SearchOutput, index: int = 0) -> list[int]:
    """
    :param search: Result of a search
    :param index: Which of its decisions
    :return: Nodes from the root on: the action that is played, then the most visited child each time
    """
    tree = search.tree
    nodes = [0]
    child = int(tree.children_index[index, 0, search.action[index]])
    while child > 0:
        nodes.append(child)
        visits = tree.children_visits[index, child]
        child = int(tree.children_index[index, child, visits.argmax()]) if visits.any() else -1
    return nodes


def candidate_names(
    search: SearchOutput,
    index: int = 0,
    node: int = 0,
    action_names: Sequence[str] | None = None,
    actions: Actions | None = None,
) -> list[str]:
    """
    :param search: Result of a search
    :param index: Which of its decisions
    :param node: Node of its tree that was expanded
    :param action_names: Names of the actions, if they were given
    :param actions: Converts candidates that were drawn to elements of the action space; by default they stay as they are
    :return: Names of the candidates at the node: by default their indices, or if they were drawn their numbers
    """
    if action_names is not None:
        return list(action_names)
    if search.candidates is None or search.node_candidates is None:
        return [str(action) for action in range(search.action_weights.shape[1])]
    candidates = search.node_candidates[index, node].astype(search.candidates.dtype)
    vectors = candidates if actions is None else actions.to_env(candidates)
    digits = "d" if np.issubdtype(vectors.dtype, np.integer) else ".2f" if np.abs(vectors).max() >= 0.1 else ".2g"
    return [" ".join(f"{number:{digits}}" for number in np.ravel(vector)) for vector in vectors]


def node_positions(children: np.ndarray) -> tuple[list[int], np.ndarray]:
    """
    Leaves in a row, every other node in the middle above its children.

    :param children: Index of each node's children, shape ``[num_nodes, num_actions]``, not above 0 where there is none
    :return: The nodes below the root, parents before children, and the position of every node, shape ``[num_nodes]``
    """
    positions = np.zeros(len(children))
    num_leaves = 0
    order: list[int] = []
    stack = [0]
    while stack:
        node = stack.pop()
        order.append(node)
        below = [int(child) for child in children[node] if child > 0]
        stack += below[::-1]
        if not below:
            positions[node] = num_leaves
            num_leaves += 1
    for node in reversed(order):
        below = [int(child) for child in children[node] if child > 0]
        if below:
            positions[node] = positions[below].mean()
    return order, positions
