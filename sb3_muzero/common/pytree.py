"""Nested structures of tensors or arrays: observations of a Dict space, latents of several parts."""

from collections.abc import Callable
from typing import Any


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """
    Apply a function to the leaves of nested dictionaries, tuples and named tuples.

    :param function: Takes one leaf of each tree
    :param tree: A tensor, an array, or a nest of such
    :param others: Trees of the same structure
    :return: A tree of the same structure with what the function returns
    """
    if isinstance(tree, dict):
        return {key: tree_map(function, part, *(other[key] for other in others)) for key, part in tree.items()}
    if isinstance(tree, tuple):
        parts = [tree_map(function, *parts) for parts in zip(tree, *others, strict=True)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return function(tree, *others)


def tree_leaves(tree: Any) -> list[Any]:
    """
    :param tree: A tensor, an array, or a nest of such
    :return: Its leaves, in the order of ``tree_map``
    """
    leaves: list[Any] = []
    tree_map(leaves.append, tree)
    return leaves
