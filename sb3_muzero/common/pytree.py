"""Nested structures of tensors or arrays, such as observations of a Dict space and latents with several parts."""

from collections.abc import Callable
from typing import Any


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """
    Apply a function to the leaves of nested dictionaries, tuples and named tuples.

    :param function: Takes one leaf of each tree
    :param tree: Tensor or array, or a nested structure of them
    :param others: Trees with the same structure
    :return: Tree with the same structure, whose leaves are the function's results
    """
    if isinstance(tree, dict):
        return {key: tree_map(function, part, *(other[key] for other in others)) for key, part in tree.items()}
    if isinstance(tree, tuple):
        parts = [tree_map(function, *parts) for parts in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return function(tree, *others)


def tree_leaves(tree: Any) -> list[Any]:
    """
    :param tree: Tensor or array, or a nested structure of them
    :return: Leaves, in the order of ``tree_map``
    """
    leaves: list[Any] = []
    tree_map(leaves.append, tree)
    return leaves
