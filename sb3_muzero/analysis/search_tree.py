"""What a search tree says: the line of play that it expects, and where to draw its nodes."""

import numpy as np

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
